"""Flickr30k Entities: written scenes, and the markup and xml of its files."""

import numpy as np
import pytest

from mg_jax.data.sources import open_source
from mg_jax.data.write import write_flickr30k
from mg_jax.errors import UserError
from mg_jax.text import markup
from tests.data.sources.grounded_scenes import all_of, picture, places, scenes


def test_written_scenes_are_read_back(tmp_path):
    rows = scenes()
    folder, images = write_flickr30k(rows, tmp_path)
    source = open_source(f"flickr30k:{folder},{images}")
    got = all_of(source)
    assert not source.counts and len(got) == len(rows) and source.name == "flickr30k_train"
    for e, row in zip(got, rows, strict=True):
        for a, b in zip(e.captions, row.captions, strict=True):
            left, right = markup.parse(a), markup.parse(b)
            assert [(s.kind, s.text) for s in left] == [(s.kind, s.text) for s in right]
            for s, t in zip(left, right, strict=True):
                np.testing.assert_allclose(places(e, s.regions), places(row, t.regions), atol=0.008)
        assert len(e.regions) == 3 and (e.width, e.height) == (96, 64)
        assert e.pixels().shape == (64, 96, 3)


XML = """<annotation>
	<filename>11.jpg</filename>
	<size><width>40</width><height>20</height><depth>3</depth></size>
	<object><name>1</name><name>6</name>
	<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>13</xmax><ymax>16</ymax></bndbox></object>
	<object><name>1</name>
	<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>20</ymax></bndbox></object>
	<object><name>7</name>
	<bndbox><xmin>9</xmin><ymin>9</ymin><xmax>9</xmax><ymax>12</ymax></bndbox></object>
	<object><name>9</name><scene>1</scene><nobndbox>0</nobndbox></object>
	<object><name>10</name><scene>0</scene><nobndbox>1</nobndbox></object>
</annotation>"""
LINES = """[/EN#1/people Two young guys] with [/EN#7/bodyparts/other shaggy hair] in [/EN#9/scene the yard] .
[/EN#6/people A café owner] & [/EN#0/notvisual who] <p>hangs</p> [ out ] , [/EN#10/other time] [/EN#77/x late]

[/EN#1/people Wrong]
Nothing marked .
"""  # noqa: E501


def flickr(tmp_path, number="11", xml=XML, lines=LINES, file=True):
    for name, text in ((f"Annotations/{number}.xml", xml), (f"Sentences/{number}.txt", lines)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if text is not None:
            (tmp_path / name).write_text(text, encoding="utf-8")
    if file:
        picture(tmp_path / f"images/{number}.jpg")
    return f"flickr30k:{tmp_path},{tmp_path / 'images'}"


def test_markup_and_boxes(tmp_path):
    spec = flickr(tmp_path)
    (tmp_path / "UNRELATED_CAPTIONS").write_text(
        "# format: <imageID> <sentence number>\n11 4\n12 1"
    )
    source = open_source(spec + ",split=all")
    assert source.counts == {"unrelated captions": 1, "boxes without area": 1}
    e = source[0]
    assert e.captions == (
        "<p>Two young guys</p><r:0><r:1> with shaggy hair in the yard .",
        "<p>A café owner</p><r:0> & who <p >hangs</p > [ out ] , time late",
        "Nothing marked .",
    )
    assert places(e, [0, 1]) == [(0.1, 0.25, 0.3, 0.75), (0, 0, 0.975, 0.95)]
    assert e.meta == {"file_name": "11.jpg", "task": "grounded_caption"}


def test_splits(tmp_path):
    for number in ("11", "12", "13"):
        spec = flickr(tmp_path, number)
    (tmp_path / "train.txt").write_text("13\n11\n")
    (tmp_path / "test.txt").write_text("12")
    assert [e.id for e in all_of(open_source(spec))] == ["flickr30k_train-13", "flickr30k_train-11"]
    assert (
        len(open_source(spec + ",split=test")) == 1 and len(open_source(spec + ",split=all")) == 3
    )
    with pytest.raises(UserError, match=r"val\.txt: no such file .list of val"):
        open_source(spec + ",split=val")
    with pytest.raises(UserError, match="split=dev: choose from train, val, test, all"):
        open_source(spec + ",split=dev")


def test_odd_files(tmp_path):
    flickr(tmp_path)
    flickr(tmp_path, "12", file=False)
    cases = {
        "20": (XML[:-9], LINES), "21": (None, LINES), "22": (XML, None), "27": (XML, "[/EN#1 a b"),
        "23": (XML.replace("<width>40</width>", ""), LINES),
        "25": (XML, "[/EN#1/people not closed"),
        "24": (XML.replace("<xmin>5<", "<xmin>five<"), LINES), "28": (XML, "[/EN#x/people a] b"),
        "26": (XML.replace("<width>40<", "<width>nan<"), LINES),
    }  # fmt: skip
    for number, (xml, lines) in cases.items():
        spec = flickr(tmp_path, number, xml, lines)
    (tmp_path / "train.txt").write_text("\n".join(["11", "12", *sorted(cases)]))
    source = open_source(spec + ",max_bad=0.9")
    assert source.bad == len(cases) and len(source) == 1
    assert source.counts["pictures without a file"] == 1
    wanted = ("20.xml: no valid XML", "21.xml: cannot be read", "22.txt: cannot be read",
              "23.xml: size/width is None", "24.xml: bndbox/xmin is 'five'", "25.txt: line 1",
              "26.xml: size/width is 'nan'", "27.txt: line 1", "28.txt: line 1")  # fmt: skip
    for problem, what in zip(source.problems, wanted, strict=True):
        assert what in problem and "\n" not in problem
    with pytest.raises(UserError, match=r"20\.xml: no valid XML.*9 of 11 records"):
        open_source(spec)
    (tmp_path / "UNRELATED_CAPTIONS").write_text("11 four")
    with pytest.raises(UserError, match='UNRELATED_CAPTIONS: expected "number line"'):
        open_source(spec)

"""Readers: what is written is read back, and bad data name the culprit."""

import json

import numpy as np
import pytest
from PIL import Image

from mg_jax.data.scenes import RESERVED_SEED
from mg_jax.data.sources import open_source
from mg_jax.data.sources.voc import split_of
from mg_jax.data.write import write_coco, write_jsonl, write_voc
from mg_jax.errors import UserError
from mg_jax.example import Example, Region, Turn


@pytest.fixture(scope="module")
def scenes():
    return open_source("scenes:seed=51,n=6,size=160x120,turns=3")


def regions(examples):
    return [
        ([(r.box, r.label) for r in e.objects], [r.box for r in e.crowd], e.width, e.height)
        for e in examples
    ]


def with_crowd(source):
    out = []
    for e in (source[i] for i in range(len(source))):
        crowd = (Region.from_box((0.25, 0.5, 0.75, 1.0), label="red star"),)
        out.append(Example(**{**e.__dict__, "crowd": crowd}))
    return out


@pytest.mark.parametrize("kind", ["coco", "voc", "jsonl"])
def test_written_scenes_are_read_back(kind, scenes, tmp_path):
    rows = with_crowd(scenes)
    if kind == "coco":
        spec = "coco:{},{}".format(*write_coco(rows, tmp_path))
    elif kind == "voc":
        spec = f"voc:{write_voc(rows, tmp_path)}"
    else:
        spec = f"jsonl:{write_jsonl(rows, tmp_path)}"
    source = open_source(spec)
    assert len(source) == len(rows) and not source.counts
    order = {e.id: e for e in rows}
    for e in (source[i] for i in range(len(source))):
        name = e.id if kind == "jsonl" else e.meta["file_name"].removesuffix(".png")
        want = order[name]
        for (box, label), (wanted, name) in zip(
            regions([e])[0][0], regions([want])[0][0], strict=True
        ):
            np.testing.assert_allclose(box, wanted, atol=1e-7)
            assert label == name
        np.testing.assert_allclose([r.box for r in e.crowd], [r.box for r in want.crowd])
        np.testing.assert_array_equal(e.pixels(), want.pixels())
        if kind == "jsonl":
            assert e.turns == want.turns
            for a, b in zip(e.regions, want.regions, strict=True):
                assert (a.kind, a.label) == (b.kind, b.label)
                np.testing.assert_allclose(a.box, b.box, atol=1e-9)
                np.testing.assert_allclose(a.points, b.points, atol=1e-9)
        else:
            assert e.turns == ()


def test_scene_source():
    a = open_source("scenes:seed=4,n=5,tasks=rec+presence,turns=2,min_objects=4,size=96")
    assert len(a) == 5 and a[2].pixels().shape == (96, 96, 3)
    assert a[2].turns == open_source("scenes:seed=4,n=9,tasks=rec+presence,turns=2,min_objects=4,"
                                     "size=96")[2].turns  # fmt: skip
    assert open_source("scenes:tasks=none")[0].turns == ()
    with pytest.raises(IndexError):
        a[5]


def test_evaluation_seeds_are_refused_in_training():
    spec = f"scenes:seed={RESERVED_SEED},n=3"
    assert len(open_source(spec)) == 3
    with pytest.raises(UserError, match="kept for evaluation"):
        open_source(spec, training=True)
    open_source(f"scenes:seed={RESERVED_SEED - 1},n=3", training=True)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nope:x", "choose|one of scenes, coco, voc, jsonl"),
        ("scenes:sed=1", "unknown option 'sed'"),
        ("scenes:seed=x", "seed=x"),
        ("scenes:n=0", "n=0"),
        ("scenes:size=10", "size=10"),
        ("scenes:seed=1,seed=2", "given twice"),
        ("scenes:min_objects=9,max_objects=3", "min_objects=9"),
        ("scenes:head=b", "head=b"),
        ("scenes:tasks=reg", "unknown task 'reg'"),
        ("coco:/none.json,/tmp", "/none.json: no such file"),
        ("coco:", "not given"),
        ("voc:/none", "/none: no such folder"),
        ("jsonl:/none.jsonl", "/none.jsonl: no such file"),
    ],
)
def test_wrong_texts(spec, message):
    with pytest.raises(UserError, match=message) as caught:
        open_source(spec)
    assert "\n" not in str(caught.value)


def coco(tmp_path, annotations, images=None, **extra):
    (tmp_path / "pics").mkdir(exist_ok=True)
    Image.new("RGB", (40, 20)).save(tmp_path / "pics/a.png")
    data = {
        "images": images or [
            {"id": 1, "file_name": "a.png", "width": 40, "height": 20},
            {"id": 2, "file_name": "gone.png", "width": 40, "height": 20},
        ],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "cell"}],
        **extra,
    }  # fmt: skip
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data))
    return f"coco:{path},{tmp_path / 'pics'}"


def test_coco_irregularities(tmp_path):
    note = {"image_id": 1, "category_id": 7}
    spec = coco(tmp_path, [
        {**note, "bbox": [1.5, 2.25, 10.5, 5]},
        {**note, "bbox": [30, 10, 25, 25]},       # beyond the border
        {**note, "bbox": [0, 0, 20, 10], "iscrowd": 1},
        {**note, "bbox": [5, 5, 0, 3]},           # no width
        {**note, "bbox": [50, 5, 4, 3]},          # outside
        {**note, "bbox": [1, 1, float("nan"), 3]},
        {"image_id": 2, "category_id": 7, "bbox": [0, 0, 5, 5]},
    ])  # fmt: skip
    source = open_source(spec)
    assert len(source) == 1
    e = source[0]
    np.testing.assert_allclose(e.objects[0].box, (1.5 / 40, 2.25 / 20, 12 / 40, 7.25 / 20))
    np.testing.assert_allclose(e.objects[1].box, (30 / 40, 10 / 20, 1, 1))
    assert len(e.objects) == 2 and e.objects[0].label == "cell"
    assert [r.box for r in e.crowd] == [(0, 0, 0.5, 0.5)]
    assert source.counts == {"boxes without area": 3, "pictures without a file": 1}
    assert "3 boxes without area" in source.summary()
    assert e.turns == () and e.pixels().shape == (20, 40, 3)
    empty = coco(tmp_path, [])
    assert len(open_source(empty)) == 0 and len(open_source(empty + ",empty=keep")) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": None}, "no list 'annotations'"),
        ({"images": [{"id": 1}]}, "images\\[0\\]: lacks 'file_name'"),
        ({"annotations": [{"image_id": 1, "bbox": [1, 2]}]}, "annotations\\[0\\]: bbox"),
        ({"images": [{"id": 1, "file_name": "no.png", "width": 1, "height": 1}]}, "holds none"),
        ({"images": [{"id": 1, "file_name": "a.png", "width": 0, "height": 1}]}, "whole numbers"),
    ],
)
def test_malformed_coco(tmp_path, change, message):
    spec = coco(tmp_path, [])
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message) as caught:
        open_source(spec)
    assert str(tmp_path) in str(caught.value)


def test_broken_json(tmp_path):
    spec = coco(tmp_path, [])
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json: no valid JSON"):
        open_source(spec)


VOC = """<annotation><filename>{name}</filename>
<size><width>{w}</width><height>{h}</height></size>
<object><name>RBC</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>3</ymin><xmax>20</xmax><ymax>10</ymax></bndbox></object>
<object><name>WBC</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>20</ymax></bndbox></object>
<object><name>bad</name>
<bndbox><xmin>9</xmin><ymin>3</ymin><xmax>2</xmax><ymax>10</ymax></bndbox></object>
</annotation>"""


def test_voc_counts_from_one_and_splits_by_name(tmp_path):
    for folder in ("Annotations", "JPEGImages"):
        (tmp_path / folder).mkdir()
    for k in range(60):
        Image.new("RGB", (40, 20)).save(tmp_path / f"JPEGImages/cell_{k}.jpg")
        text = VOC.format(name="stale.jpg", w=0 if k == 0 else 40, h=0 if k == 0 else 20)
        (tmp_path / f"Annotations/cell_{k}.xml").write_text(text)
    source = open_source(f"voc:{tmp_path}")
    assert len(source) == 60 and source.counts == {"boxes without area": 60}
    e = source[0]
    assert (e.width, e.height) == (40, 20)
    assert [r.box for r in e.objects] == [pytest.approx((0, 0.1, 0.5, 0.5))] and e.objects[
        0
    ].label == "RBC"
    assert [r.box for r in e.crowd] == [(0, 0, 1, 1)]
    train, held = (open_source(f"voc:{tmp_path},split={s}") for s in ("train", "heldout"))
    names = [{s[i].meta["file_name"] for i in range(len(s))} for s in (train, held)]
    assert not names[0] & names[1] and sum(map(len, names)) == 60 and 4 <= len(names[1]) <= 22
    assert split_of("BloodImage_00000") == split_of("BloodImage_00000")
    (tmp_path / "Annotations/cell_3.xml").write_text("<annotation>")
    mended = open_source(f"voc:{tmp_path}")  # one of sixty is let pass, and named
    assert len(mended) == 59 and mended.bad == 1 and "cell_3.xml: no valid XML" in mended.summary()
    with pytest.raises(UserError, match=r"cell_3\.xml: no valid XML.*1 of 60 records"):
        open_source(f"voc:{tmp_path},max_bad=0.01")
    with pytest.raises(UserError, match="split=val"):
        open_source(f"voc:{tmp_path},split=val")


def test_jsonl_regions_of_every_kind(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    mask = np.zeros((20, 40), bool)
    mask[5:10, 10:20] = True
    rle = Region.from_mask(mask).mask
    row = {
        "image": "a.png",
        "regions": [{"box": [4, 5, 20, 10.5], "label": "dog", "score": 0.5}, {"point": [20, 10]},
                    {"polygon": [[0, 0], [40, 0], [20, 20]]}, {"mask": rle}],
        "turns": [{"user": "What is <r:1>?", "assistant": "<p>dog</p><r:0>"}, {"user": "And?"}],
        "objects": [{"box": [4, 5, 20, 10.5]}],
    }  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n\n")
    (e,) = (open_source(f"jsonl:{path}")[i] for i in range(1))
    assert (e.width, e.height) == (40, 20)
    assert [r.kind for r in e.regions] == ["box", "point", "polygon", "mask"]
    np.testing.assert_allclose(e.regions[0].box, (0.1, 0.25, 0.5, 0.525))
    assert e.regions[1].points == ((0.5, 0.5),)
    np.testing.assert_allclose(e.regions[3].box, (0.25, 0.25, 0.5, 0.5))
    assert e.turns[1] == Turn("And?", None) and len(e.objects) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "x.png", "meta": {"head": "lvis"}}', 'a.jsonl:1: meta .*"head" coco or sa1b'),
        ("{", "a.jsonl:1: no valid JSON"),
        ("[]", "expected an object"),
        ('{"image": "a.png", "imgs": 1}', "unknown key 'imgs'"),
        ('{"image": "a.png", "turns": [{"user": "<r:0>"}]}', "region 0, but there are 0"),
        ('{"image": "a.png", "turns": [{"use": "x"}]}', 'needs "user"'),
        (
            '{"image": "a.png", "turns": [{"user": "x", "about": [0], "landmarks": [0, 1]}]}',
            "turns[0] landmarks=[1] are none of about=[0]",
        ),
        (
            '{"image": "a.png", "questions": [{"question": "Which?", "answers": ["x"], '
            '"choices": ["x"]}]}',
            "a.jsonl:1: questions[0] has one choice, 'x': give two or more, or none",
        ),
        ('{"image": "a.png", "width": 0}', "whole numbers"),
        ('{"image": "a.png", "regions": [{}]}', "exactly one of box"),
        ('{"image": "a.png", "regions": [{"box": [1, 2]}]}', "has 2 numbers, expected 4"),
        ('{"image": "a.png", "regions": [{"box": [9, 2, 3, 4]}]}', "box [9, 2, 3, 4] is reversed"),
        (
            '{"image": "a.png", "objects": [{"box": [50, 50, 60, 60]}]}',
            "a.jsonl:1: objects[0]: box [50, 50, 60, 60] has no area inside the picture of 40x20",
        ),
        (
            '{"image": "a.png", "objects": [{"box": [5, 5, 6, 6], "label": 3}]}',
            "a.jsonl:1: objects[0]: label is 3: expected text",
        ),
        ('{"image": "a.png", "objects": [{"point": [5, 5], "label": ["a"]}]}', "label is ['a']"),
        (
            '{"image": "a.png", "regions": [{"box": [5, 5, 6, 6], "score": "x"}]}',
            "a.jsonl:1: regions[0]: score holds 'x', expected a number",
        ),
        ('{"image": "a.png", "crowd": [{"box": [5, 5, 6, 6], "score": NaN}]}', "score is nan"),
        (
            '{"image": "a.png", "objects": [{"mask": {"size": [2, 2], "counts": [0, 4]}}]}',
            "a.jsonl:1: objects[0]: mask has the size [2, 2], its picture [20, 40]",
        ),
        ('{"image": "b.png", "regions": []}', "a.jsonl:1: .*b.png: no such file"),
        ("", "holds no line"),
    ],
)
def test_malformed_jsonl(tmp_path, line, message):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    path = tmp_path / "a.jsonl"
    path.write_text(line)
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        open_source(f"jsonl:{path}")[0]


def test_real_photos(shared):
    cells = open_source(f"voc:{shared / 'data/bccd'}")
    parts = [open_source(f"voc:{shared / 'data/bccd'},split={s}") for s in ("train", "heldout")]
    assert len(cells) == sum(map(len, parts)) and 0.1 < len(parts[1]) / len(cells) < 0.3
    assert {r.label for i in range(20) for r in cells[i].objects} <= {"RBC", "WBC", "Platelets"}
    assert cells[0].pixels().shape == (cells[0].height, cells[0].width, 3)
    mini = shared / "data/coco_mini"
    photos = open_source(f"coco:{mini / 'instances.json'},{mini / 'images'}")
    assert len(photos) > 100 and photos[0].pixels().ndim == 3


def test_a_jsonl_source_tells_the_line_of_an_example(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    (tmp_path / "a.jsonl").write_text('{"image": "1.png"}\n\n{"image": "1.png"}\n')
    source = open_source(f"jsonl:{tmp_path / 'a.jsonl'}")
    assert len(source) == 2 and source.where(1).endswith("a.jsonl:3")

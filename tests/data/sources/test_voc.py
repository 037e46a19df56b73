"""Pascal VOC: lists of splits and odd annotations."""

import pytest

from mg_jax.data.sources import open_source
from mg_jax.data.write import write_voc
from mg_jax.errors import UserError
from tests.data.sources.boxed_scenes import all_of, assert_boxes, picture, scenes


def test_lists_of_splits(tmp_path):
    rows = scenes(6)
    parts = {e.id: "train" if n < 4 else "test" for n, e in enumerate(rows)}
    folder = write_voc(rows, tmp_path / "VOC2007", part=lambda e: parts[e.id])
    for split, want in (("train", rows[:4]), ("test", rows[4:]), ("heldout", rows[4:])):
        assert_boxes(all_of(open_source(f"voc:{folder},split={split}")), want)
    assert_boxes(all_of(open_source(f"voc:{folder}")), rows)
    with pytest.raises(UserError, match="split=val: choose from train, heldout, all, test"):
        open_source(f"voc:{folder},split=val")
    lists = folder / "ImageSets/Main"
    (lists / "val.txt").write_text(f"{rows[1].id} -1\n{rows[2].id}  1\nnone\n")
    source = open_source(f"voc:{folder},split=heldout")
    assert_boxes(all_of(source), rows[1:3])
    assert source.counts == {"names of the split without annotations": 1}
    (lists / "empty.txt").write_text("")
    with pytest.raises(UserError, match=r"empty\.txt: names none of the 6 files"):
        open_source(f"voc:{folder},split=empty")


def test_odd_annotations(tmp_path):
    picture(tmp_path / "JPEGImages/ünï.jpg")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/ünï.xml").write_text(
        "<annotation><size><width>40</width><height>20</height></size>"
        "<object><name> person </name><bndbox><xmax>20.5</xmax><xmin>1.5</xmin><ymax>10</ymax>"
        "<ymin>1</ymin></bndbox><part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin>"
        "<xmax>5</xmax><ymax>5</ymax></bndbox></part></object>"  # a part is no object
        "<object><name>dot</name><bndbox><xmin>40</xmin><ymin>20</ymin><xmax>40</xmax>"
        "<ymax>20</ymax></bndbox></object>"
        "<object><name>猫 &amp; co</name><difficult>1</difficult><bndbox><xmin>0</xmin>"
        "<ymin>0</ymin><xmax>50</xmax><ymax>30</ymax></bndbox></object></annotation>",
        encoding="utf-8",
    )
    (e,) = all_of(open_source(f"voc:{tmp_path}"))
    assert [r.label for r in (*e.objects, *e.crowd)] == ["person", "dot", "猫 & co"]
    assert e.objects[0].box == pytest.approx((0.5 / 40, 0, 20.5 / 40, 0.5))
    assert e.objects[1].box == pytest.approx((39 / 40, 19 / 20, 1, 1))
    assert e.crowd[0].box == (0, 0, 1, 1)

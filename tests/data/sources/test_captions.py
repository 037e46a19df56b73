"""Captions: COCO and TextCaps."""

import json

import numpy as np
import pytest
from PIL import Image

from mg_jax.data.sources import open_source
from mg_jax.data.write import write_coco, write_coco_captions, write_textcaps
from mg_jax.errors import UserError
from tests.data.sources.asked import all_of, scenes


def test_coco_captions_are_read_back(tmp_path):
    rows = scenes()
    file, images = write_coco_captions(rows, tmp_path)
    instances, _ = write_coco(rows, tmp_path)
    source = open_source(f"captions:{file},{images}")
    assert [e.captions for e in all_of(source)] == [e.captions for e in rows]
    assert source[0].objects == () and source[0].meta["task"] == "captions"
    boxed = open_source(f"captions:{file},{images},{instances}")
    assert boxed.frequency == open_source(f"coco:{instances},{images},empty=keep").frequency
    assert boxed.frequency and not source.frequency
    for got, want in zip(all_of(boxed), rows, strict=True):
        assert got.captions == want.captions
        np.testing.assert_allclose(
            [r.box for r in got.objects], [r.box for r in want.objects], atol=1e-6
        )
        np.testing.assert_array_equal(got.pixels(), want.pixels())
    (tmp_path / "other.json").write_text(
        json.dumps({"images": [{"id": 99, "file_name": "x.png", "width": 9, "height": 9}],
                    "annotations": []})
    )  # fmt: skip
    (images / "x.png").write_bytes((images / f"{rows[0].id}.png").read_bytes())
    with pytest.raises(UserError, match=r"other\.json: has none of the pictures"):
        open_source(f"captions:{file},{images},{tmp_path / 'other.json'}")


def test_textcaps_are_read_back(tmp_path):
    rows = scenes()
    file, images = write_textcaps(rows, tmp_path)
    source = open_source(f"textcaps:{file},{images}")
    assert [e.captions for e in all_of(source)] == [e.captions for e in rows]
    assert source[0].pixels().shape == rows[0].pixels().shape and not source.counts
    data = json.loads(file.read_text())
    for n, row in enumerate(data["data"]):
        del row["reference_strs"]
        if n == 0:
            row["caption_str"] = None
    file.write_text(json.dumps(data))
    alone = open_source(f"textcaps:{file},{images},max_bad=0.5")
    assert alone.bad == 1 and alone[0].captions == rows[0].captions[1:]


def test_odd_coco_captions(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    pictures = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "gone.png"}, {"id": 3}]
    notes = [
        {"image_id": 1, "caption": " Ein Bär <p>x</p>\n"},
        {"image_id": 1, "caption": "Ein Bär <p>x</p>"},
        {"image_id": 2, "caption": "of no file"},
        {"image_id": 1, "caption": " "},
        {"image_id": 7, "caption": "of no picture"},
        {"image_id": 1, "bbox": [1, 2, 3, 4]},
    ]
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"images": pictures, "annotations": notes}))
    source = open_source(f"captions:{path},{tmp_path},max_bad=0.5")
    (e,) = all_of(source)
    assert e.captions == ("Ein Bär <p >x</p >",) and (e.width, e.height) == (40, 20)
    assert source.counts == {"pictures without a file": 1, "empty captions": 1}
    assert [p.partition(": ")[2] for p in source.problems] == [
        "images[2]: lacks 'file_name'",
        "annotations[4]: image_id 7 is not in images",
        "annotations[5]: lacks 'caption'",
    ]
    path.write_text(json.dumps({"images": pictures[:1], "annotations": []}))
    with pytest.raises(UserError, match="holds no caption"):
        open_source(f"captions:{path},{tmp_path}")
    path.write_text(json.dumps({"images": pictures[1:2], "annotations": []}))
    with pytest.raises(UserError, match=r"none of the 1 pictures .* gone\.png"):
        open_source(f"captions:{path},{tmp_path}")
    path.write_text(json.dumps({"images": []}))
    with pytest.raises(UserError, match="not COCO captions: it has no list 'annotations'"):
        open_source(f"captions:{path},{tmp_path}")


def test_real_captions(shared):
    mini = shared / "data/coco_mini"
    files = f"{mini / 'captions.json'},{mini / 'images'}"
    source = open_source(f"captions:{files},{mini / 'instances.json'}")
    assert len(source) > 50 and all(len(e.captions) >= 4 for e in all_of(source))
    assert sum(bool(e.objects) for e in all_of(source)) > 0.9 * len(source)
    e = source[0]
    assert e.pixels().shape == (e.height, e.width, 3)
    assert not open_source(f"captions:{files}").counts

"""Masks of the data sets in COCO's form, beside pycocotools."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from mg_jax.data.sources import open_source
from mg_jax.data.sources.outlines import outline
from mg_jax.data.write import write_coco
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Region
from mg_jax.rle import decode_rle, encode_rle

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SQUARE = [2, 3, 8, 3, 8, 9, 2, 9]


def theirs(segmentation, width, height):
    mask = pytest.importorskip("pycocotools.mask")
    return mask.decode(mask.merge(mask.frPyObjects(segmentation, height, width))).astype(bool)


def ours(segmentation, width, height):
    rle = outline(segmentation, width, height)
    return np.zeros((height, width), bool) if rle is None else decode_rle(rle)


def test_polygons_are_filled_as_pycocotools_does(rng):
    marked = 0
    for n in range(600):
        width, height = map(int, rng.integers(1, 60, 2))
        polygons = []
        for _ in range(rng.integers(1, 4)):
            points = rng.uniform(-10, 70, (rng.integers(3, 9), 2))
            points = np.round(points * (n % 3)) / max(n % 3, 1) if n % 3 else points
            if n % 5 == 0:
                points[1] = points[0]  # a vertex twice
            polygons.append(points.reshape(-1).tolist())
        found = ours(polygons, width, height)
        marked += found.any()
        np.testing.assert_array_equal(found, theirs(polygons, width, height))
    assert marked > 400


def test_runs_are_taken_as_they_are():
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:7] = True
    rle = encode_rle(mask)
    assert outline(rle, 30, 20) is rle
    assert outline(encode_rle(~mask & mask), 30, 20) is None
    assert outline(None, 30, 20) is None and outline([[1, 2, 3, 4]], 30, 20) is None
    for wrong, message in (
        (rle | {"size": [30, 20]}, "of another picture"),
        (rle | {"counts": [5]}, "sum to 5"),
        ({"size": [20, 30]}, '"counts"'),
        ([[1, 2, 3, "x", 5, 6]], "no list of polygons"),
        ([[1, 2, 3, 4, 5, 6, 7]], "no list of polygons"),
        ([[1, 2, 1e9, 4, 5, 6]], r"reaches to 1e\+09"),
        ([[1, 2, float("nan"), 4, 5, 6]], "reaches to nan"),
        ("poly", "no list of polygons"),
    ):
        with pytest.raises(BadRecord, match=message):
            outline(wrong, 30, 20)


def coco(tmp_path, segmentations, late=False):
    images = [{"id": 1, "file_name": "é.png", "width": 30, "height": 20}]
    notes = [
        {"image_id": 1, "category_id": 1, "bbox": [2, 3, 7, 6], "note": "ü", "iscrowd": int(k == 1),
         "segmentation": s}
        for k, s in enumerate(segmentations)
    ]  # fmt: skip
    lists = {"images": images, "annotations": notes}
    if late:
        lists = {"annotations": notes, "images": images}
    data = json.dumps(lists | {"categories": [{"id": 1, "name": "cat"}]}, ensure_ascii=False)
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + data.encode())
    Image.new("RGB", (30, 20)).save(tmp_path / "é.png")
    return f"coco:{tmp_path / 'a.json'},{tmp_path}"


@pytest.mark.parametrize("late", [False, True])
def test_objects_keep_their_masks_and_their_boxes(tmp_path, late):
    crowd = encode_rle(np.arange(600).reshape(20, 30) % 2 == 0)
    spec = coco(tmp_path, [[SQUARE], crowd, [], [SQUARE, [20, 1, 25, 1, 25, 5]]], late)
    source = open_source(f"{spec},masks=keep")
    assert source.counts == {"outlines of boxes that have none": 1}
    for got in (source[0], pickle.loads(pickle.dumps(source))[0]):
        assert [r.kind for r in got.objects] == ["mask", "box", "mask"]
        assert [r.box for r in got.objects] == [r.box for r in open_source(spec)[0].objects]
        for region, polygons in zip(got.objects[::2], ([SQUARE], [SQUARE, [20, 1, 25, 1, 25, 5]]),
                                    strict=True):  # fmt: skip
            np.testing.assert_array_equal(region.mask_array(), theirs(polygons, 30, 20))
        assert got.crowd[0].mask == crowd and got.objects[0].label == "cat"
    plain = open_source(spec)
    assert not plain.counts and all(r.mask is None for r in plain[0].objects)


def test_malformed_outlines(tmp_path):
    spec = coco(tmp_path, [[SQUARE], "none", [SQUARE]])
    with pytest.raises(UserError, match=r"annotations\[1\]: segmentation none is no list"):
        open_source(f"{spec},masks=keep")
    source = open_source(f"{spec},masks=keep,max_bad=0.5")
    assert source.bad == 1 and [r.kind for r in source[0].objects] == ["mask", "mask"]
    assert len(open_source(spec)[0].objects) == 2  # outlines that nobody asked for do no harm
    spec = coco(tmp_path, [encode_rle(np.ones((30, 20), bool))])
    with pytest.raises(BadRecord, match=r"a\.json: byte \d+: segmentation of size \[30, 20\]"):
        open_source(f"{spec},masks=keep")[0]
    for text, message in (
        (f"{spec},masks=yes", "choose drop or keep"),
        (spec.replace("coco:", "objects365:") + ",masks=keep", "unknown option 'masks'"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(text)


def test_masks_that_are_written_come_back(tmp_path):
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:7] = True
    region = Region.from_mask(mask, label="cat")
    example = Example(np.zeros((20, 30, 3), np.uint8), 30, 20, objects=(region,), id="a")
    paths = write_coco([example], tmp_path)
    (got,) = open_source("coco:{},{},masks=keep".format(*paths))[0].objects
    assert got.mask == region.mask and got.box == pytest.approx(region.box)


@pytest.mark.shared
def test_masks_of_the_official_lvis_sample(shared, tmp_path):
    path = shared / "data/lvis_val_100.json"
    data = json.loads(path.read_text())
    (tmp_path / "val2017").mkdir()
    for row in data["images"]:
        (tmp_path / "val2017" / row["coco_url"].rpartition("/")[2]).touch()
    source = open_source(f"lvis:{path},{tmp_path},empty=keep,masks=keep")
    for i in range(0, len(source), 5):
        row, example = data["images"][i], source[i]
        notes = [a for a in data["annotations"] if a["image_id"] == row["id"]]
        for region, note in zip(example.objects, notes, strict=True):
            expected = theirs(note["segmentation"], row["width"], row["height"])
            np.testing.assert_array_equal(region.mask_array(), expected)

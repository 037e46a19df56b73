"""SA-1B: a json of masks for each picture."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mg_jax.data.sources import open_source
from mg_jax.data.sources.sa1b import mask_box
from mg_jax.data.write import write_sa1b
from mg_jax.data.write.sa1b import compress
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Region
from mg_jax.rle import decode_rle, encode_rle
from tests.data.sources.boxed_scenes import all_of, scenes


def test_boxes_of_masks_are_exact(rng):
    for _ in range(300):
        height, width = rng.integers(1, 9, 2)
        mask = rng.random((height, width)) < rng.choice([0.05, 0.3, 0.8])
        rle = encode_rle(mask)
        packed = {"size": rle["size"], "counts": compress(rle["counts"])}
        if not mask.any():
            assert mask_box(rle) is mask_box(packed) is None
            continue
        ys, xs = np.nonzero(mask)
        want = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert mask_box(rle) == mask_box(packed) == want
    with pytest.raises(UserError, match="counts sum to 3"):
        mask_box({"size": [2, 2], "counts": [3]})
    for text, message in (("oo", "cut off"), ("o" * 13 + "0", "60 bits"), ("~", "character '~'")):
        with pytest.raises(UserError, match=message):
            mask_box({"size": [2, 2], "counts": text})


def test_compressed_masks_are_those_of_pycocotools(rng):
    tools = pytest.importorskip("pycocotools.mask")
    mask = rng.random((200, 150)) < 0.01
    mask[40:160, 20:90] = True
    rle = encode_rle(mask)
    text = compress(rle["counts"])
    assert tools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode() == text
    np.testing.assert_array_equal(decode_rle({"size": rle["size"], "counts": text}), mask)


def blobs(rows):
    """Scenes whose objects have masks: discs in their boxes."""
    out = []
    for e in rows:
        y, x = np.mgrid[: e.height, : e.width] + 0.5
        regions = []
        for r in e.objects:
            x0, y0, x1, y1 = r.box
            cx, cy, rx, ry = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2
            inside = ((x / e.width - cx) / rx) ** 2 + ((y / e.height - cy) / ry) ** 2 <= 1
            regions.append(Region.from_mask(inside))
        out.append(replace(e, objects=tuple(regions)))
    return out


def test_written_masks_are_read_back(tmp_path):
    rows = blobs(scenes())
    folder = write_sa1b(rows, tmp_path)
    source = open_source(f"sa1b:{folder}")
    assert source.head == "sa1b" and len(source) == len(rows)
    for got, want in zip(all_of(source), rows, strict=True):
        assert got.pixels().shape == want.pixels().shape
        assert [r.label for r in got.objects] == [None] * len(want.objects)
        np.testing.assert_allclose(
            [r.box for r in got.objects], [r.box for r in want.objects], atol=1e-9
        )
    stated = open_source(f"sa1b:{folder},boxes=bbox,head=coco")
    (a, b) = source[0].objects[0].box, stated[0].objects[0].box
    assert a[:2] == b[:2] and (a[2] - b[2]) * 96 == pytest.approx(1)  # bbox ends a pixel early
    assert stated.head == "coco" and stated[0].meta["file_name"] == "sa_1.jpg"


def test_filters(tmp_path):
    folder = write_sa1b(scenes(1), tmp_path)
    path = next(folder.rglob("*.json"))
    data = json.loads(path.read_text())
    areas = sorted(a["area"] for a in data["annotations"])
    data["annotations"][0] |= {"predicted_iou": 0.5, "stability_score": 0.99}
    path.write_text(json.dumps(data))

    def count(options):
        return len(open_source(f"sa1b:{folder}{options}")[0].objects)

    assert count("") == len(areas)
    assert count(f",min_area={areas[1]}") == sum(a >= areas[1] for a in areas)
    assert count(f",max_area={areas[0]}") == sum(a <= areas[0] for a in areas)
    assert count(",min_iou=0.6") == len(areas) - 1
    assert count(",min_stability=0.98") == 1


def test_layouts(tmp_path):
    rows = scenes(3)
    folder = write_sa1b(rows, tmp_path / "a")
    flat, images = tmp_path / "flat", tmp_path / "images"
    flat.mkdir()
    images.mkdir()
    for path in folder.rglob("*"):
        if path.is_file():
            (flat if path.suffix == ".json" else images).joinpath(path.name).write_bytes(
                path.read_bytes()
            )
    assert len(open_source(f"sa1b:{flat},{images}")) == 3
    (images / "sa_2.jpg").unlink()
    source = open_source(f"sa1b:{flat},{images}")
    assert source.counts == {"pictures without a file": 1}
    assert [e.meta["image_id"] for e in all_of(source)] == [1, 3]
    with pytest.raises(UserError, match=r"holds no sa_N\.json with a picture"):
        open_source(f"sa1b:{flat}")
    with pytest.raises(UserError, match="boxes=points"):
        open_source(f"sa1b:{folder},boxes=points")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("image"), "lacks 'image'"),
        (lambda d: d["image"].update(width="9"), "width is '9'"),
        (lambda d: d["image"].update(width=0), "whole numbers"),
        (lambda d: d["annotations"].append(3), "expected an object"),
        (lambda d: d["annotations"][0].pop("area"), r"annotations\[0\]: lacks 'area'"),
        (lambda d: d["annotations"][1].update(segmentation={"size": [1]}), "no COCO RLE"),
        (lambda d: d["annotations"][1]["segmentation"].update(size=[2, 3]), "sum to"),
        (lambda d: d["image"].update(width=64, height=96), "of another picture"),
    ],
)
def test_a_malformed_json_is_a_bad_record(tmp_path, change, message):
    folder = write_sa1b(scenes(2), tmp_path)
    path = sorted(folder.rglob("*.json"))[0]
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    source = open_source(f"sa1b:{folder}")
    with pytest.raises(BadRecord, match=message) as caught:
        source[0]
    assert "sa_1.json" in str(caught.value) and source[1].objects
    path.write_text("{")
    with pytest.raises(BadRecord, match=r"sa_1\.json: no valid JSON"):
        source[0]
    path.unlink()
    with pytest.raises(BadRecord, match=r"sa_1\.json: cannot be read \(No such file"):
        source[0]

"""Boxes in a wrong space: told apart, named, and correct ones left alone."""

import json

import numpy as np
import pytest

from mg_jax.data.sources import open_source
from mg_jax.data.sources.spaces import FORMS, looks_like
from mg_jax.errors import UserError
from tests.data.sources.boxed_scenes import picture

SIZES = {"landscape": (640, 480), "portrait": (333, 500), "large": (1920, 1080)}


def drawn(kind, n=400, seed=0):
    """Boxes of every size in pictures of one kind or of all: xyxy pixels and sizes."""
    rng = np.random.default_rng(seed)
    kinds = list(SIZES.values()) if kind == "mixed" else [SIZES[kind]]
    sizes = np.array([kinds[k % len(kinds)] for k in range(n)], float)
    sides = rng.uniform(0.02, 0.9, (n, 2)) ** 1.5 * sizes
    low = rng.uniform(0, 1, (n, 2)) * (sizes - sides)
    boxes = np.concatenate([low, low + sides], 1)
    boxes[: n // 10, 2:] = sizes[: n // 10]  # some end at the border
    return boxes, sizes


def as_read(raw, form):
    """Numbers of a file as edges, by a reader that expects `form`."""
    if form == "xyxy":
        return raw
    low = raw[:, :2] - (raw[:, 2:] / 2 if form == "cxcywh" else 0)
    return np.concatenate([low, low + raw[:, 2:]], 1)


def written(boxes, form):
    low, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    if form == "xyxy":
        return boxes
    return np.concatenate([low + (sides / 2 if form == "cxcywh" else 0), sides], 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [*SIZES, "mixed"])
def test_right_boxes_are_taken(kind, form):
    for seed in range(10):
        boxes, sizes = drawn(kind, seed=seed)
        assert looks_like(as_read(written(boxes, form), form), sizes, form) == ""
        assert looks_like(np.round(boxes), sizes, form) == ""
        shares = boxes / np.tile(sizes, 2)
        assert looks_like(as_read(written(shares, form), form), np.ones_like(sizes), form) == ""
        over = boxes + np.tile(sizes, 2) * 0.15 * [-1, -1, 1, 1]  # whole bodies, past the border
        assert looks_like(over, sizes, form) == ""


def test_odd_but_right_boxes_are_taken():
    sizes = np.tile([[1280, 1024]], (60, 1))
    middle = np.tile([[400.0, 300, 970, 980]], (60, 1))
    assert looks_like(middle, sizes) == ""  # near 1000, but not the whole range of bins
    assert looks_like(middle / 10, sizes / 10) == ""  # near 100, likewise
    dots = np.tile([[0.0, 0, 1, 1]], (60, 1))
    assert looks_like(dots, sizes) == ""  # the first pixel
    assert looks_like(np.full((3, 4), np.nan), np.ones((3, 2))) == ""
    assert looks_like([], []) == ""
    few = np.array([[30.0, 10, 55, 35], [1, 1, 5, 5]])  # one of two past the border
    assert looks_like(few, [[40, 20], [40, 20]], "xywh") == ""


@pytest.mark.parametrize("kind", ["landscape", "portrait", "mixed"])
@pytest.mark.parametrize(
    ("given", "form"),
    [("xyxy", "xywh"), ("xywh", "xyxy"), ("xyxy", "cxcywh"), ("cxcywh", "xyxy")],
)
def test_another_order_of_the_numbers_is_named(kind, given, form):
    for seed in range(5):
        boxes, sizes = drawn(kind, seed=seed)
        assert looks_like(as_read(written(boxes, given), form), sizes, form) == FORMS[given]
        shares = written(boxes / np.tile(sizes, 2), given)
        assert looks_like(as_read(shares, form), np.ones_like(sizes), form) == FORMS[given]


def test_other_spaces_are_named():
    boxes, sizes = drawn("landscape")
    ones, scale = np.ones_like(sizes), np.tile(sizes, 2)
    assert looks_like(boxes[:, [1, 0, 3, 2]], sizes) == "y before x"
    for form in FORMS:
        shares = written(boxes / scale, form)
        assert looks_like(as_read(shares, form), sizes, form) == "shares of 1"
        assert looks_like(as_read(written(boxes, form), form), ones, form) == "pixels"
    bins = np.round(boxes / scale * 1000)
    assert looks_like(bins, sizes) == "bins of 0 to 1000"
    assert looks_like(as_read(bins, "xywh"), sizes, "xywh") == "bins of 0 to 1000"
    assert looks_like(bins, ones) == "bins of 0 to 1000"
    assert looks_like(bins, 3 * sizes) == "bins of 0 to 1000"  # inside, but never beyond 1000
    assert looks_like(boxes / scale * 100, ones) == "percent"
    percent = boxes / scale * 100  # inside pictures of more than 100 pixels, but never beyond 100
    percent[:2] = [[0, 1.5, 99.6, 40], [20, 30, 60, 100]]
    assert looks_like(percent, sizes) == "percent"
    assert looks_like(as_read(written(percent, "xywh"), "xywh"), sizes, "xywh") == "percent"


def coco(tmp_path, boxes):
    picture(tmp_path / "pics/a.jpg", 640, 480)
    data = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}],
        "annotations": [{"image_id": 1, "bbox": list(b), "category_id": 1} for b in boxes],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    return f"coco:{tmp_path / 'a.json'},{tmp_path / 'pics'}"


def test_a_reader_says_which_space(tmp_path):
    boxes, _ = drawn("landscape", n=60)
    assert len(open_source(coco(tmp_path, written(boxes, "xywh").tolist()))) == 1
    with pytest.raises(UserError, match="x, y, width, height in pixels, they look like x0, y0, x1"):
        open_source(coco(tmp_path, boxes.tolist()))
    with pytest.raises(UserError, match="a: the boxes reach to .*look like shares of 1"):
        open_source(coco(tmp_path, (written(boxes, "xywh") / [640, 480, 640, 480]).tolist()))
    beyond = [[700 + k, 10, 50, 20] for k in range(12)]
    with pytest.raises(UserError, match="12 of its 12 boxes .* reach to x 761 and y 30; .*check"):
        open_source(coco(tmp_path, beyond))
    some = [[k, 10, 50, 20] for k in range(9)]
    with pytest.raises(UserError, match="12 of its 21 boxes have no area"):
        open_source(coco(tmp_path, beyond + some))
    assert open_source(coco(tmp_path, beyond[:8] + some)).counts["boxes without area"] == 8
    with pytest.raises(UserError, match="% of its boxes reach beyond .* picture of another size"):
        open_source(coco(tmp_path, (1.4 * written(boxes, "xywh")).tolist()))

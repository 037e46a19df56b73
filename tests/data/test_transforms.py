"""Detection augmentation: boxes go where their pixels go."""

import dataclasses

import numpy as np
import pytest

from mg_jax.data.sources import open_source
from mg_jax.data.transforms import Augment, View, detection_record, draw_view, keep_boxes, label_ids
from mg_jax.example import Example, Region
from mg_jax.vision.preprocess import denormalize

WIDTH, HEIGHT = 240, 180


def ramp() -> np.ndarray:
    """Red counts columns, green counts rows: a pixel tells where it came from."""
    out = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    out[..., 0] = np.arange(WIDTH)
    out[..., 1] = np.arange(HEIGHT)[:, None]
    return out


def views(count, boxes, **numbers):
    rng = np.random.default_rng(0)
    augment = Augment(**{**Augment().scaled(112).__dict__, **numbers})
    return [draw_view(WIDTH, HEIGHT, boxes, rng, augment) for _ in range(count)]


BOXES = np.array([[0.1, 0.2, 0.4, 0.5], [0.55, 0.3, 0.95, 0.9], [0.0, 0.9, 0.05, 1.0]])


def test_boxes_follow_the_pixels():
    size = 96
    for view in views(40, BOXES):
        image = view.pixels(ramp(), size).astype(float)
        assert image.shape == (size, size, 3)
        x0, y0, x1, y1 = view.box
        for u, v in np.random.default_rng(1).integers(2, size - 2, (30, 2)):
            # The centre of pixel (u, v) shows the point (x, y) of the original, in its pixels.
            x, y = image[v, u, 0] + 0.5, image[v, u, 1] + 0.5
            box = view.boxes(np.array([[x / WIDTH, y / HEIGHT] * 2]))[0]
            want = ((u + 0.5) / size, (v + 0.5) / size)
            # A ramp is stored in whole steps: half a step of the original either way.
            slack = 1.01 * np.array([1 / (x1 - x0), 1 / (y1 - y0)])
            assert (np.abs(box[:2] - want) <= slack).all()


def test_boxes_equal_the_steps_of_the_spec_one_by_one():
    """Resize, crop, squash, flip as mmdet does them, in that order, in pixels."""
    for seed in range(50):
        augment = Augment().scaled(112)
        view = draw_view(WIDTH, HEIGHT, BOXES, np.random.default_rng(seed), augment)
        rng = np.random.default_rng(seed)
        short = augment.short[rng.integers(3)]
        scale = min(augment.long / WIDTH, short / HEIGHT)
        w, h = int(WIDTH * scale + 0.5), int(HEIGHT * scale + 0.5)
        boxes = BOXES * [w, h, w, h]
        while True:
            low, high = (round(v) for v in augment.crop)
            ch = int(rng.integers(min(h, low), min(h, high) + 1))
            cw = int(rng.integers(min(w, low), min(w, high) + 1))
            y, x = int(rng.integers(h - ch + 1)), int(rng.integers(w - cw + 1))
            moved = boxes - [x, y, x, y]
            clipped = np.clip(moved, 0, [cw, ch, cw, ch])
            if ((clipped[:, 2:] - clipped[:, :2]) > 0).all(1).any():
                break
        out = moved * (112 / np.array([cw, ch, cw, ch])) / 112
        if rng.random() < 0.5:
            out = np.stack([1 - out[:, 2], out[:, 1], 1 - out[:, 0], out[:, 3]], 1)
        np.testing.assert_allclose(view.boxes(BOXES), out, atol=1e-9)


def test_a_crop_holds_a_box_or_nothing_is_cropped():
    one = np.array([[0.3, 0.3, 0.32, 0.32]])
    whole = (0.0, 0.0, float(WIDTH), float(HEIGHT))
    seen = set()
    for view in views(60, one, tries=2, crop=(40, 60)):
        inside = np.clip(view.boxes(one), 0, 1)
        assert (inside[:, 2:] > inside[:, :2]).all()
        seen.add(view.box == whole)
    assert seen == {True, False}


def example(boxes, image=None, **meta) -> Example:
    image = ramp() if image is None else image
    return Example(
        image=image,
        width=image.shape[1],
        height=image.shape[0],
        objects=tuple(Region.from_box(b) for b in boxes),
        meta=meta,
    )


def test_record_without_augmentation():
    r = detection_record(example(BOXES), np.random.default_rng(0), 64, 5, augment=False)
    assert r["pixels"].shape == (64, 64, 3) and r["pixels"].dtype == np.float32
    np.testing.assert_allclose(r["boxes"][:3], BOXES, atol=1e-6)
    assert r["region_mask"].tolist() == [True] * 3 + [False] * 2 and not r["boxes"][3:].any()
    assert r["boxes"].dtype == np.float32 and r["head"] == 0 and r["head"].dtype == np.int32


def test_mirror():
    whole = (0.0, 0.0, float(WIDTH), float(HEIGHT))
    plain, mirrored = (View(whole, WIDTH, HEIGHT, m) for m in (False, True))
    np.testing.assert_array_equal(mirrored.pixels(ramp(), 50), plain.pixels(ramp(), 50)[:, ::-1])
    np.testing.assert_allclose(mirrored.boxes(BOXES)[0], [0.6, 0.2, 0.9, 0.5])


def test_small_boxes_are_dropped_by_the_rule_of_the_head():
    boxes = np.array([[0, 0, 0.01, 0.5], [0, 0, 0.1, 0.1], [0, 0, 1, 1]])
    augment = Augment().scaled(448)
    assert keep_boxes(boxes, 448, "coco", augment).tolist() == [True, True, True]
    assert keep_boxes(boxes, 100, "coco", augment).tolist() == [False, True, True]
    assert keep_boxes(boxes, 448, "sa1b", augment).tolist() == [True, True, False]
    only = example([[0, 0, 0.003, 0.01]])
    rng = np.random.default_rng(0)
    assert detection_record(only, rng, 64, 4, augment=False) is None
    assert detection_record(example([]), rng, 64, 4) is None
    assert detection_record(example(BOXES, head="sa1b"), rng, 64, 4)["head"] == 1


def test_more_boxes_than_slots_leave_a_random_choice():
    boxes = np.array([[k / 10, 0.1, k / 10 + 0.08, 0.6] for k in range(10)])
    kept = {
        tuple(np.round(detection_record(
            example(boxes), np.random.default_rng(s), 64, 4, augment=False)["boxes"][:, 0], 2))
        for s in range(6)
    }  # fmt: skip
    assert len(kept) > 1 and all(len(set(k)) == 4 for k in kept)
    for slots, dropped in ((4, 6), (10, 0), (12, 0)):
        r = detection_record(example(boxes), np.random.default_rng(0), 64, slots, augment=False)
        assert r["dropped"] == dropped == len(boxes) - r["region_mask"].sum()


@pytest.mark.parametrize("augment", [True, False])
def test_scenes_keep_their_colors_inside_their_boxes(augment):
    """End to end: the middle of a plain square's augmented box still has its colour."""
    from mg_jax.data.scenes import draw

    source, checked = open_source("scenes:seed=61,n=60,tasks=none,max_objects=5"), 0
    for i in range(60):
        e = source[i]
        rng = np.random.default_rng(i)
        squares = [k for k, o in enumerate(e.meta["objects"])
                   if o["shape"] in ("square", "circle") and o["texture"] == "plain"
                   and o["visible"] == 1 and not e.image.world.things[k].word]  # fmt: skip
        for k in squares:
            e.objects = (e.objects[k],)
            r = detection_record(e, rng, 128, 2, augment)
            if r is None:
                continue
            x0, y0, x1, y1 = r["boxes"][0] * 128
            if min(x1 - x0, y1 - y0) < 8 or min(x0, y0) <= 0 or max(x1, y1) >= 128:
                continue
            middle = denormalize(r["pixels"])[int((y0 + y1) / 2), int((x0 + x1) / 2)]
            assert draw.color_name(middle) == e.meta["objects"][k]["color"]
            checked += 1
            break
    assert checked > 5


def test_labels_follow_their_boxes_as_words():
    boxes, labels = [], ("red star", "star", "blue whale of stone", None, "tiny red dog")
    for k, label in enumerate(labels):
        boxes.append(Region.from_box((k / 8, 0.1, k / 8 + 0.1, 0.6), label=label))
    e = dataclasses.replace(example(BOXES), objects=tuple(boxes))
    words = ("red", "blue", "star", "dog")
    want = [[0, 2], [2], [1], [], [0, 3]]
    want = [row + [-1] * (4 - len(row)) for row in want]
    assert label_ids(e, words).tolist() == want
    told = dataclasses.replace(e, meta={"objects": [{"color": "red", "size": "dog"}, *[{}] * 4]})
    assert label_ids(told, words).tolist() == [[0, 2, 3, -1], *want[1:]]
    for odd in ([{}], "x", [7] * 5):  # not one for each object, or nothing that tells
        assert label_ids(dataclasses.replace(e, meta={"objects": odd}), words).tolist() == want
    r = detection_record(e, np.random.default_rng(0), 64, 7, augment=False, words=words)
    assert r["labels"].tolist() == [*want, [-1] * 4, [-1] * 4] and r["labels"].dtype == np.int32
    assert "labels" not in detection_record(e, np.random.default_rng(0), 64, 7, augment=False)
    for seed in range(5):  # fewer slots than boxes: a choice, still in pairs
        r = detection_record(e, np.random.default_rng(seed), 64, 2, augment=False, words=words)
        rows = np.round(r["boxes"][:, 0] * 8).astype(int)
        assert r["labels"].tolist() == [want[k] for k in rows]

"""Box formats, overlaps, suppression, and BoxSpace's way there and back."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mg_jax import boxes as B
from mg_jax.boxes import BoxSpace
from mg_jax.errors import UserError

GOLDEN = Path(__file__).parent / "golden" / "ops.npz"
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def random_boxes(rng, *shape, size=0.5):
    low = rng.uniform(0, 1 - size, (*shape, 2))
    return np.concatenate([low, low + rng.uniform(0.01, size, (*shape, 2))], -1).astype(np.float32)


# ---- formats and overlaps


def test_formats_round_trip(rng):
    boxes = random_boxes(rng, 3, 5)
    np.testing.assert_allclose(B.cxcywh_to_xyxy(B.xyxy_to_cxcywh(boxes)), boxes, atol=1e-7)
    np.testing.assert_array_equal(
        B.xyxy_to_cxcywh([[0.0, 0.25, 1.0, 0.75]]), [[0.5, 0.5, 1.0, 0.5]]
    )


def plain_iou(a, b):
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return w * h / union, w * h / union - (hull - union) / hull


def test_overlaps_equal_plain_loops_in_numpy_and_jax(rng):
    a, b = random_boxes(rng, 6), random_boxes(rng, 4)
    want = np.array([[plain_iou(x, y) for y in b] for x in a])
    for convert in (np.asarray, jnp.asarray):
        x, y = convert(a), convert(b)
        np.testing.assert_allclose(B.iou(x, y), want[..., 0], atol=1e-6)
        np.testing.assert_allclose(B.giou(x, y), want[..., 1], atol=1e-6)
        np.testing.assert_allclose(B.paired_iou(x[:4], y), np.diag(want[:4, :, 0]), atol=1e-6)
        np.testing.assert_allclose(B.paired_giou(x[:4], y), np.diag(want[:4, :, 1]), atol=1e-6)
        assert isinstance(B.iou(x, y), type(x))
    batched = B.iou(np.stack([a, a[::-1]]), np.stack([b, b]))
    np.testing.assert_allclose(batched[1], want[::-1, :, 0], atol=1e-6)


def test_overlap_of_degenerate_boxes_is_zero_with_finite_gradient():
    point = jnp.array([[0.5, 0.5, 0.5, 0.5]])
    assert float(B.iou(point, point)[0, 0]) == 0.0
    for overlap in (B.paired_iou, B.paired_giou):
        gradient = jax.grad(lambda x, f=overlap: f(x, point).sum())(point)
        assert np.isfinite(gradient).all()


def test_clip():
    box = np.array([-0.5, 0.2, 1.5, 3.0])
    np.testing.assert_array_equal(B.clip(box), [0, 0.2, 1, 1])
    np.testing.assert_array_equal(B.clip(box, 1.25, 2.0), [0, 0.2, 1.25, 2.0])


# ---- non-maximum suppression


def plain_nms(boxes, scores, valid, iou_threshold, score_threshold, max_out, fallback=True):
    known = [i for i in range(len(boxes)) if valid[i] and not np.isnan(scores[i])]
    left = [i for i in known if score_threshold <= 0 or scores[i] > score_threshold]
    if not left:
        return [max(known, key=lambda i: (scores[i], -i))] if known and fallback else []
    kept = []
    for i in sorted(left, key=lambda i: (-scores[i], i)):
        overlaps = B.iou(boxes[i : i + 1], boxes[kept]) if kept else np.zeros(0)
        if not (overlaps > np.float32(iou_threshold)).any():
            kept.append(i)
    return kept[:max_out]


jitted_nms = jax.jit(B.nms, static_argnames=("max_out", "fallback"))


def run_nms(boxes, scores, valid, iou_threshold, score_threshold, max_out, fallback=True):
    out = jitted_nms(
        boxes, scores, valid, iou_threshold, score_threshold, max_out=max_out, fallback=fallback
    )
    index, keep = (np.asarray(a) for a in out)
    assert index.dtype == np.int32 and keep.dtype == bool
    assert not index[~keep].any() and not (np.diff(keep.astype(int)) > 0).any()
    return index[keep].tolist()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("iou_threshold,score_threshold,max_out", [
    (0.6, 0.15, 100), (0.3, 0.0, 12), (0.5, 0.5, 5), (0.0, -1.0, 40), (0.9, 0.15, 1),
])  # fmt: skip
def test_nms_equals_plain_greedy(seed, iou_threshold, score_threshold, max_out):
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, 60)
    boxes[40:50] = boxes[30:40]  # exact doubles
    scores = np.round(rng.uniform(0, 1, 60), 1).astype(np.float32)  # ties, and 0.5 on a threshold
    valid = rng.uniform(size=60) > 0.2
    scores[3], scores[7] = np.nan, -np.inf
    args = (boxes, scores, valid, iou_threshold, score_threshold, max_out)
    assert run_nms(*args) == plain_nms(*args)


def test_nms_long_chains_and_strict_threshold():
    # each box overlaps its neighbours alone: the greedy answer alternates
    low = np.arange(50, dtype=np.float32)[:, None] * 0.5
    boxes = np.concatenate([low, 0 * low, low + 1.0, 0 * low + 1.0], -1)
    scores = np.linspace(1, 0.5, 50).astype(np.float32)
    valid = np.ones(50, bool)
    assert run_nms(boxes, scores, valid, 0.3, 0.0, 50) == list(range(0, 50, 2))
    # an IoU equal to the threshold does not suppress: 1/3 against float32(1/3)
    assert run_nms(boxes, scores, valid, np.float32(0.5) / np.float32(1.5), 0.0, 50) == [*range(50)]


def test_nms_nothing_passes(rng):
    boxes, scores = random_boxes(rng, 5), np.array([0.1, 0.3, 0.9, 0.3, 0.2], np.float32)
    valid = np.array([True, True, False, True, True])
    assert run_nms(boxes, scores, valid, 0.6, 0.5, 3) == [1]
    assert run_nms(boxes, scores, valid, 0.6, 0.5, 3, fallback=False) == []
    assert run_nms(boxes, scores, np.zeros(5, bool), 0.6, 0.5, 3) == []
    assert run_nms(boxes, scores, valid, 0.6, 0.3, 3) == [1]  # 0.3 itself does not pass
    hopeless = np.full(5, -np.inf, np.float32)
    assert run_nms(boxes, hopeless, np.arange(5) > 2, 0.6, 0.5, 3) == [3]


def check_recorded_nms(recorded):
    for case in (name[:-7] for name in recorded.files if name.endswith("_params")):
        boxes, scores = recorded[f"{case}_boxes_xyxy"], recorded[f"{case}_scores"]
        iou_threshold, score_threshold, most = (float(v) for v in recorded[f"{case}_params"])
        most = int(most) if most > 0 else len(scores)
        valid = np.ones(len(scores), bool)
        got = run_nms(boxes, scores, valid, iou_threshold, score_threshold, most)
        assert got == recorded[f"{case}_keep"].tolist()


def test_strict_dtype_promotion(rng):
    boxes, scores = jnp.asarray(random_boxes(rng, 5)), jnp.linspace(0.1, 0.9, 5)
    with jax.numpy_dtype_promotion("strict"):
        index, keep = B.nms(boxes, scores, jnp.ones(5, bool), 1.0, 0.0, 7)
        assert index.tolist() == [4, 3, 2, 1, 0, 0, 0] and keep.tolist() == [True] * 5 + [False] * 2
        space = BoxSpace.tiles(640, 480, 2, 3, 336, keep_aspect=True)
        tile, local = space.points_to_tiles(boxes[:, :2])
        back = space.points_from_tiles(tile, local)
        np.testing.assert_allclose(back, boxes[:, :2], atol=1e-6)
        for fn in (B.giou, B.paired_iou):
            assert fn(B.clip(boxes), B.cxcywh_to_xyxy(boxes)).dtype == jnp.float32


def test_nms_equals_recording():
    check_recorded_nms(np.load(GOLDEN))


@pytest.mark.shared
def test_nms_equals_full_recording(shared):
    check_recorded_nms(np.load(shared / "golden" / "groma" / "ops" / "ops.npz"))


def test_nms_sharded_over_the_batch_needs_no_collective(rng):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("data")
    boxes, scores = random_boxes(rng, 8, 40), rng.uniform(size=(8, 40)).astype(np.float32)
    valid = rng.uniform(size=(8, 40)) > 0.1
    args = [jax.device_put(a, NamedSharding(mesh, rows)) for a in (boxes, scores, valid)]
    batched = jax.vmap(lambda *row: B.nms(*row, 0.5, 0.15, 10))
    local = jax.jit(jax.shard_map(batched, mesh=mesh, in_specs=(rows,) * 3, out_specs=rows))
    text = local.lower(*args).compile().as_text()
    assert "while" in text and not any(name in text for name in COLLECTIVES)
    index, keep = local(*args)
    for i in range(8):
        want = plain_nms(boxes[i], scores[i], valid[i], 0.5, 0.15, 10)
        assert np.asarray(index[i])[np.asarray(keep[i])].tolist() == want


# ---- BoxSpace

sides = st.integers(1, 20_000)
fractions = st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4)


def ordered(values):
    x1, y1, x2, y2 = values
    return np.array([min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)], np.float64)


@st.composite
def spaces(draw):
    """A view made by a named constructor, or by a chain of crops, resizes and flips."""
    width, height, size = draw(sides), draw(sides), draw(st.integers(8, 1024))
    align = draw(st.sampled_from(["centre", "top_left"]))
    kind = draw(st.sampled_from(["squash", "pad", "tiles", "fitted tiles", "chain"]))
    if kind == "squash":
        return BoxSpace.squash(width, height, size)
    if kind == "pad":
        return BoxSpace.pad(width, height, size, align)
    if "tiles" in kind:
        rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
        keep = kind == "fitted tiles"
        return BoxSpace.tiles(width, height, rows, columns, size, keep_aspect=keep, align=align)
    space = BoxSpace.original(width, height)
    for _ in range(draw(st.integers(1, 3))):
        space = space.resize(draw(st.integers(100, 900)), draw(st.integers(100, 900)))
        left, top = draw(st.integers(-50, 50)), draw(st.integers(-50, 50))
        space = space.crop(left, top, draw(st.integers(50, 400)), draw(st.integers(50, 400)))
        if draw(st.booleans()):
            space = space.flip()
    return space


@settings(max_examples=300, deadline=None)
@given(spaces(), fractions)
def test_round_trips(space, values):
    box = ordered(values)
    long = max(space.width, space.height)
    view = space.to_view(box)
    assert view[0] <= view[2] and view[1] <= view[3]
    back = space.to_pixels(space.to_original(view))
    np.testing.assert_allclose(back, space.to_pixels(box), atol=1e-9 * long, rtol=0)
    np.testing.assert_allclose(space.from_pixels(space.to_pixels(box)), box, rtol=1e-15)
    points = box.reshape(2, 2)
    back = space.points_to_original(space.points_to_view(points))
    np.testing.assert_allclose(back * long, points * long, atol=1e-9 * long)
    # view pixels -> original -> view pixels: what a model's own box goes through
    pixels = space.to_view(space.to_original(box)) * max(space.view_width, space.view_height)
    np.testing.assert_allclose(pixels, box * max(space.view_width, space.view_height), atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(sides, sides, st.integers(8, 1024), fractions)
def test_round_trips_in_float32_stay_far_below_half_a_pixel(width, height, size, values):
    for space in (BoxSpace.squash(width, height, size), BoxSpace.pad(width, height, size)):
        box = ordered(values).astype(np.float32)
        for convert in (np.asarray, jnp.asarray):
            view = space.to_view(convert(box))
            assert view.dtype == np.float32 and isinstance(view, type(convert(box)))
            back = np.asarray(space.to_original(view), np.float64)
            want = space.to_pixels(box.astype(np.float64))
            np.testing.assert_allclose(
                space.to_pixels(back), want, atol=1e-6 * max(width, height), rtol=0
            )


@settings(max_examples=100, deadline=None)
@given(sides, sides, st.data())
def test_whole_pixels_survive_exactly(width, height, data):
    x, y = data.draw(st.integers(0, width)), data.draw(st.integers(0, height))
    for space in (BoxSpace.pad(width, height, 336), BoxSpace.squash(width, height, 448).flip()):
        view = space.points_to_view(space.from_pixels([x, y]))
        got = space.to_pixels(space.points_to_original(view))
        assert np.rint(got).tolist() == [x, y] and np.abs(got - [x, y]).max() < 1e-6


@settings(max_examples=100, deadline=None)
@given(sides, sides, st.integers(1, 6), st.integers(1, 6), st.booleans(), fractions)
def test_tiles_there_and_back(width, height, rows, columns, keep_aspect, values):
    space = BoxSpace.tiles(width, height, rows, columns, 336, keep_aspect=keep_aspect)
    points = np.array(values).reshape(2, 2)
    tile, local = space.points_to_tiles(points)
    assert tile.dtype == np.int32 and ((tile >= 0) & (tile < rows * columns)).all()
    assert (local > -1e-9).all() and (local < 1 + 1e-9).all()
    back = space.points_from_tiles(tile, local)
    np.testing.assert_allclose(back, points, atol=1e-9 * max(width, height))
    boxes = space.tile_boxes()[tile]
    inside = boxes[:, :2] + local * (boxes[:, 2:] - boxes[:, :2])
    np.testing.assert_allclose(inside, points, atol=1e-9 * max(width, height))


def test_known_places():
    pad = BoxSpace.pad(640, 480, 336)
    np.testing.assert_allclose(pad.content, (0, 42, 336, 294))
    np.testing.assert_allclose(pad.to_view([0.0, 0.0, 1.0, 1.0]), [0, 0.125, 1, 0.875])
    odd = BoxSpace.pad(3, 8, 8)  # 5 columns of padding: 2 before, 3 behind
    assert odd.content == (2, 0, 5, 8)
    assert BoxSpace.pad(3, 8, 8, "top_left").content == (0, 0, 3, 8)
    assert BoxSpace.squash(640, 480, 448).content == (0, 0, 448, 448)
    fitted = BoxSpace.tiles(1000, 500, 2, 2, 100, keep_aspect=True)
    assert fitted.content == (0, 50, 200, 150)
    tile, local = fitted.points_to_tiles(jnp.array([[0.5, 0.5], [1.0, 1.0], [0.0, 0.0]]))
    assert tile.tolist() == [3, 3, 0]
    np.testing.assert_allclose(local, [[0, 0], [1, 0.5], [0, 0.5]], atol=1e-6)
    flipped = BoxSpace.squash(640, 480, 448).flip()
    np.testing.assert_allclose(flipped.to_view([0.1, 0.2, 0.3, 0.4]), [0.7, 0.2, 0.9, 0.4])
    assert flipped.flip() == BoxSpace.squash(640, 480, 448)
    assert flipped.content == (0, 0, 448, 448)


@pytest.mark.parametrize("width,height", [(6, 4), (3, 9), (1, 12), (7, 7)])
@pytest.mark.parametrize("align", ["centre", "top_left"])
def test_boxes_follow_the_pixels(width, height, align):
    """A painted rectangle, padded, enlarged, cropped and mirrored, lies where the box says."""
    box = (0, height // 3, max(1, width // 2), height)
    image = np.zeros((height, width), bool)
    image[box[1] : box[3], box[0] : box[2]] = True
    side, factor = max(width, height), 5
    left, top = (side - width, side - height) if align == "centre" else (0, 0)
    square = np.zeros((side, side), bool)
    square[top // 2 : top // 2 + height, left // 2 : left // 2 + width] = image
    view = square.repeat(factor, 0).repeat(factor, 1)[:, ::-1]
    view = np.pad(view, ((2, 0), (3, 4)))
    space = BoxSpace.pad(width, height, side * factor, align).flip()
    space = space.crop(-3, -2, side * factor + 7, side * factor + 2)
    rows, columns = np.nonzero(view)
    seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    scale = np.array([space.view_width, space.view_height] * 2)
    np.testing.assert_allclose(space.to_view(space.from_pixels(box)) * scale, seen, atol=1e-9)


def test_maps_work_under_jit_and_vmap():
    space = BoxSpace.pad(640, 480, 336).flip()
    boxes = jnp.array([[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 1.0, 1.0]])
    got = jax.jit(jax.vmap(space.to_view))(boxes)
    np.testing.assert_allclose(got, space.to_view(np.asarray(boxes)), atol=1e-7)
    assert hash(space) == hash(BoxSpace.pad(640, 480, 336).flip())


@pytest.mark.parametrize("make,culprit", [
    (lambda: BoxSpace.squash(0, 10, 448), "width=0"),
    (lambda: BoxSpace.squash(10, 10, 0), "view_width=0"),
    (lambda: BoxSpace.original(10, 10.5), "height=10.5"),
    (lambda: BoxSpace.pad(10, 10, 8, "left"), "align='left'"),
    (lambda: BoxSpace.tiles(10, 10, 0, 1, 8, keep_aspect=True), "rows=0"),
    (lambda: BoxSpace.tiles(10, 10, 2, 1, 8).flip(), "tiles"),
])  # fmt: skip
def test_wrong_spaces_are_refused(make, culprit):
    with pytest.raises(UserError, match=culprit):
        make()


# ---- checking a user's boxes


@pytest.mark.parametrize("boxes,said", [
    ([[0, 0, 9, 9], [30, 10, 5, 40]], r"box 1 \[30, 10, 5, 40\] is reversed.*\[5, 10, 30, 40\]"),
    ([10, 40, 20, 40], r"box 0 \[10, 40, 20, 40\] has no area; give"),
    ([10, 40, 10, 50], "no area"),
    ([700, 0, 800, 10], r"outside the image; its coordinates are 0\.\.640 in x and 0\.\.480 in y"),
    ([0, 0, 641, 10], "leaves the image; clip it"),
    ([0, float("nan"), 1, 1], "no finite number"),
    ([0, 0, 1], "four numbers"),
    ([[[0, 0, 1, 1]]], "four numbers"),
    ("a box", "four numbers"),
])  # fmt: skip
def test_wrong_boxes_are_named(boxes, said):
    with pytest.raises(UserError, match=said):
        B.check_boxes(boxes, 640, 480)


def test_good_boxes_pass():
    np.testing.assert_array_equal(B.check_boxes([[0, 0, 640, 480]], 640, 480), [[0, 0, 640, 480]])
    np.testing.assert_array_equal(B.check_boxes([0, 0, 1 + 1e-6, 1]), [0, 0, 1, 1])
    cut = B.check_boxes([-5, 2, 700, 90], 640, 480, clip_outside=True)
    np.testing.assert_array_equal(cut, [0, 2, 640, 90])
    with pytest.raises(UserError, match="outside"):
        B.check_boxes([700, 2, 800, 90], 640, 480, clip_outside=True)
    assert B.check_boxes([]).shape == (0, 4)

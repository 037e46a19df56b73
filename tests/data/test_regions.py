"""Regions as pixels: as recorded, at the border, where they mark nothing; points of them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_jax.data.regions import POINTS, as_point, rasterise, sample
from mg_jax.data.sources.outlines import outline
from mg_jax.errors import UserError
from mg_jax.example import Region

W, H = 60, 40


def mask(region, width=W, height=H):
    """Bool [height, width]."""
    return rasterise(region, width, height).whole().T


def box(x0, y0, x1, y1, width=W, height=H):
    return Region("box", (x0 / width, y0 / height, x1 / width, y1 / height))


def rng():
    return np.random.default_rng(1)


@pytest.mark.shared
def test_masks_of_evaluation_are_as_recorded(shared):
    with np.load(shared / "golden/ferret/tables/eval_masks.npz") as recorded:
        for n in range(6):
            values, (w, h) = recorded[f"case{n}_coor"], recorded[f"case{n}_wh"].tolist()
            shares = tuple(float(v) / (w, h)[k % 2] for k, v in enumerate(values))
            region = Region.from_point(*shares) if len(shares) == 2 else Region("box", shares)
            assert (mask(region, w, h) == recorded[f"case{n}_mask_wh"].T.astype(bool)).all()


@pytest.mark.shared
def test_masks_of_training_are_as_recorded(shared):
    folder = shared / "golden/ferret/A_v1"
    regions = json.loads((folder / "meta.json").read_text())["regions"]
    with np.load(folder / "inputs.npz") as recorded:
        for n, row in enumerate(regions):
            w, h = recorded["image_sizes_wh"][row["image"]].tolist()
            place = tuple(v / (w, h)[k % 2] for k, v in enumerate(row["box"]))
            rle = outline([row["polygon"]], w, h) if row["polygon"] else None
            region = Region("mask" if rle else "box", place, mask=rle)
            if row["kind"] == "point":
                x, y = row["coor"]
                region = Region("point", place, points=((x / w, y / h),), mask=rle)
            assert (mask(region, w, h) == recorded[f"region{n}_mask_wh"].T.astype(bool)).all(), n


def test_boxes_have_both_ends():
    found = mask(box(3, 5, 8, 6))
    assert found.sum() == 6 * 2 and found[5:7, 3:9].all()
    assert mask(box(3, 5, 3.5, 5.2)).sum() == 1
    assert mask(box(0, 0, W, H)).all()


def test_points():
    assert mask(Region.from_point(0.5, 0.5)).sum() == 121
    assert mask(Region.from_point(0, 0)).sum() == 36
    assert mask(Region.from_point(1, 1)).sum() == 36  # as the last pixel


@given(
    st.lists(st.tuples(st.integers(0, W), st.integers(0, H)), min_size=2, max_size=6, unique=True)
)
def test_a_scribble_is_a_point_that_moves(corners):
    found = mask(Region.from_scribble([(x / W, y / H) for x, y in corners]))
    for x, y in corners:
        assert (found >= mask(Region.from_point(x / W, y / H))).all()
    rows, columns = found.nonzero()
    xs, ys = zip(*corners, strict=True)
    assert min(xs) - 6 <= columns.min() and columns.max() <= max(xs) + 6
    assert min(ys) - 6 <= rows.min() and rows.max() <= max(ys) + 6
    assert found.sum() >= 36


def test_a_straight_scribble_has_a_box():
    region = Region.from_scribble([(0.2, 0.5), (0.8, 0.5)])
    assert region.box == pytest.approx((0.2, 0.475, 0.8, 0.525))
    found = mask(region)
    assert found[15:26, 12:49].all() and found.sum() == 11 * (49 - 12 + 10)


def test_polygons_that_cross_themselves():
    """Filled by the even-odd rule, as pycocotools does."""
    bow = [(0.1, 0.1), (0.9, 0.9), (0.9, 0.1), (0.1, 0.9)]
    found = mask(Region.from_polygon(bow))
    coco = pytest.importorskip("pycocotools.mask")
    numbers = [[v for x, y in bow for v in (x * W, y * H)]]
    assert (found == coco.decode(coco.frPyObjects(numbers, H, W))[..., 0]).all()
    assert not found[4:8, 28:32].any() and found[18:22, 8:16].all()
    star = [(0.5, 0), (0.8, 1), (0, 0.4), (1, 0.4), (0.2, 1)]
    assert not mask(Region.from_polygon(star))[H // 2, W // 2]  # the middle is enclosed twice


def test_what_marks_no_pixel_counts_as_its_box():
    sliver = Region.from_polygon([(0.1, 0.1), (0.9, 0.101), (0.1, 0.101)])
    assert (mask(sliver) == mask(Region.from_box(sliver.box))).all()
    two = Region.from_polygon([(0.1, 0.1), (0.9, 0.9)])  # no area: a stroke
    assert 0 < mask(two).sum() < mask(Region.from_box(two.box)).sum()
    flat = [(0.2, 0.5), (0.8, 0.5)]
    assert (mask(Region.from_polygon(flat)) == mask(Region.from_scribble(flat))).all()
    array = np.zeros((H, W), bool)
    array[0, 0] = True
    elsewhere = Region("mask", box(20, 20, 25, 25).box, mask=Region.from_mask(array).mask)
    assert (mask(elsewhere) == mask(box(20, 20, 25, 25))).all()


def test_masks():
    array = np.random.default_rng(0).random((H, W)) < 0.3
    assert (mask(Region.from_mask(array)) == array).all()
    with pytest.raises(UserError, match=r"mask of 60x40 pixels, but the picture is 61x40"):
        rasterise(Region.from_mask(array), 61, H)
    with pytest.raises(UserError, match="is empty"):
        Region.from_mask(np.zeros((H, W), bool))


def test_a_picture_of_one_line():
    for region in (Region.from_point(0.5, 0.5), Region.from_box((0.1, 0, 0.2, 1)),
                   Region.from_scribble([(0.1, 0.5), (0.2, 0.5)]),
                   Region.from_polygon([(0.1, 0), (0.2, 1), (0.3, 0)])):  # fmt: skip
        for size in ((10_000, 1), (1, 10_000)):
            points, count = sample(rasterise(region, *size), rng())
            assert points.shape == (POINTS, 2) and count >= 1
            assert (points >= 0).all() and (points < 1).all()


# -- points -----------------------------------------------------------------------------------


def pixels(points, width=W, height=H):
    return np.rint(points * [width, height]).astype(int)


@pytest.mark.parametrize("count", [7, 121, 200])
def test_few_pixels_are_repeated(count):
    patch = rasterise(Region.from_point(0.5, 0.5), W, H)
    points, distinct = sample(patch, rng(), count)
    assert points.shape == (count, 2) and points.dtype == np.float32 and distinct == min(count, 121)
    found = pixels(points)
    assert len(np.unique(found[:distinct], axis=0)) == distinct
    assert mask(Region.from_point(0.5, 0.5))[found[:, 1], found[:, 0]].all()
    if count > 121:
        assert len(np.unique(found, axis=0)) == 121


def test_points_are_pixels_over_the_size():
    """As upstream divides them, in float32."""
    patch = rasterise(box(3, 5, 8, 6), W, H)
    points, distinct = sample(patch, rng(), 12)
    want = {(np.float32(x) / np.float32(W), np.float32(y) / np.float32(H))
            for x in range(3, 9) for y in (5, 6)}  # fmt: skip
    assert distinct == 12 and set(map(tuple, points)) == want


def test_many_pixels_are_drawn_evenly():
    patch = rasterise(box(0, 0, 3000, 2000, 3000, 2000), 3000, 2000)
    points, distinct = sample(patch, rng())
    assert distinct == POINTS == len(np.unique(points, axis=0))
    assert abs(points.mean(0) - 0.5).max() < 0.05


def test_points_depend_on_the_seed_and_the_region_alone():
    def drawn(region, seed):
        return sample(rasterise(region, W, H), np.random.default_rng(seed))[0]

    for region in (Region.from_point(0.2, 0.3), box(3, 5, 30, 25)):
        np.testing.assert_array_equal(drawn(region, 0), drawn(region, 0))
        assert (drawn(region, 0) != drawn(region, 1)).any()


# -- points of boxes and masks ----------------------------------------------------------------


def test_a_point_of_a_box():
    region = box(10, 10, 30, 16)
    drawn = [as_point(region, W, H, np.random.default_rng(n)) for n in range(200)]
    xy = np.array([p.points[0] for p in drawn]) * [W, H]
    assert (xy >= (10, 10)).all() and (xy <= (30, 16)).all()
    assert abs(xy.mean(0) - (20, 13)).max() < 0.6
    assert xy.std(0) == pytest.approx((3, 0.9), rel=0.2)
    assert all(p.kind == "point" and p.box == region.box for p in drawn)
    for point in drawn[:20]:  # its window is cut by the box
        assert (mask(point) <= mask(region)).all() and mask(point).any()


def test_a_point_of_a_mask():
    """The pixel nearest to the middle of the box; equals: the last."""
    array = np.zeros((H, W), bool)
    array[10:20, 10:12] = array[10:20, 28:30] = True
    region = Region.from_mask(array)
    point = as_point(region, W, H, rng())
    x, y = np.array(point.points[0]) * [W, H]
    assert (round(x), round(y)) in ((11, 15), (28, 15))
    assert array[round(y), round(x)]
    found = mask(point)
    assert found.any() and (found <= array).all()

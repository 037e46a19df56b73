"""Object images: which pixels are cut, how they are zoomed, and what augmentation changes."""

import numpy as np
import pytest

from mg_jax.data.crops import CropAugment, check_augment, crop
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Region
from mg_jax.vision import preprocess

CLIP = preprocess.get("clip_pad")
RAW = preprocess.Preprocessing(lambda cut, size: cut)  # what is cut, before it is zoomed
FILL = (122, 116, 104)


def picture(width=40, height=20):
    """Each pixel tells its place: red is the column, green the row."""
    out = np.zeros((height, width, 3), np.uint8)
    out[..., 0] = np.arange(width)
    out[..., 1] = np.arange(height)[:, None]
    return out


def test_the_original_pixels_are_cut_padded_and_zoomed():
    made = crop(picture(), (0.25, 0.1, 0.75, 0.6), CLIP, 20)  # 20 x 10 pixels from (10, 2)
    assert made.shape == (20, 20, 3) and made.dtype == np.uint8
    assert (made[:5] == FILL).all() and (made[15:] == FILL).all()
    np.testing.assert_array_equal(made[5:15], picture()[2:12, 10:30])  # at its own size: no change
    large = crop(picture(), (0.25, 0.1, 0.75, 0.6), CLIP, 40)
    assert large.shape == (40, 40, 3) and abs(int(large[20, 20, 0]) - 20) <= 1


@pytest.mark.parametrize("region", [
    Region.from_point(0.5, 0.5), Region.from_polygon([(0.3, 0.2), (0.6, 0.7), (0.2, 0.9)]),
    Region.from_mask(picture()[..., 0] > 30),
])  # fmt: skip
def test_other_kinds_of_regions_go_by_their_tightest_box(region):
    x0, y0, x1, y1 = np.array(region.box) * [40, 20, 40, 20]
    cut = crop(picture(), region.box, RAW, 64)
    assert (cut[0, 0, 0], cut[0, 0, 1]) == (np.floor(x0), np.floor(y0))
    assert (cut[-1, -1, 0], cut[-1, -1, 1]) == (np.ceil(x1) - 1, np.ceil(y1) - 1)
    np.testing.assert_array_equal(crop(picture(), region.box, CLIP, 64), CLIP.squash(cut, 64))


@pytest.mark.parametrize("box", [
    (0, 0, 1e-4, 1e-4), (0.9999, 0.9999, 1, 1), (0.5, 0, 0.50001, 1), (-1, -1, 0.01, 2),
])  # fmt: skip
def test_the_smallest_box_has_a_pixel(box):
    assert crop(picture(), box, CLIP, 8).shape == (8, 8, 3)


@pytest.mark.parametrize(("box", "message"), [
    ((0.5, 0.2, 0.5, 0.4), "e1: box .* has no area to be cut out"),
    ((0.5, 0.4, 0.7, 0.2), "has no area"),
    ((0.5, 0.4, float("nan"), 0.9), "has no area"),
    ((1.0, 0.2, 1.5, 0.4), "lies outside the picture"),
    ((0.2, -0.5, 0.5, 0.0), "lies outside the picture"),
])  # fmt: skip
def test_a_crop_without_pixels_is_refused_in_one_line(box, message):
    with pytest.raises(BadRecord, match=message) as e:
        crop(picture(), box, CLIP, 8, "e1")
    assert "\n" not in str(e.value)


def test_augmentation_follows_its_generator():
    box, augment = (0.25, 0.1, 0.75, 0.6), CropAugment(0.1, 0.2, 0.5)

    def made(seed, augment=augment):
        return crop(picture(), box, CLIP, 20, "", augment, np.random.default_rng(seed))

    np.testing.assert_array_equal(made(3), made(3))
    assert len({made(seed).tobytes() for seed in range(10)}) == 10
    np.testing.assert_array_equal(made(0, CropAugment(0, 0, 0)), crop(picture(), box, CLIP, 20))
    mirrored = made(0, CropAugment(0, 0, 1.0))[5:15]
    np.testing.assert_array_equal(mirrored, picture()[2:12, 10:30][:, ::-1])
    with pytest.raises(ValueError, match="needs a generator"):
        crop(picture(), box, CLIP, 20, "", augment)


def test_jitter_stays_near_the_box():
    shown = []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        cut = crop(picture(), (0.25, 0.1, 0.75, 0.6), RAW, 20, "", CropAugment(0.1, 0, 0), rng)
        shown.append((int(cut[0, 0, 0]), int(cut[-1, -1, 0])))
    low, high = np.transpose(shown)
    assert low.min() >= 8 and low.max() <= 12 and high.min() >= 27 and high.max() <= 31
    assert len(set(low)) > 2


@pytest.mark.parametrize("change", [{"jitter": 0.5}, {"light": -0.1}, {"flip": 2.0}])
def test_shares_out_of_range_are_named(change):
    with pytest.raises(UserError, match=f"config.crop_augment.{next(iter(change))}: .* between"):
        check_augment(CropAugment(**change))
    check_augment(CropAugment())

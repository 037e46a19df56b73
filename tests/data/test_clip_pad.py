"""MG-LLaVA's pictures: padded square, and the low resolution made from the high one."""

import jax
import numpy as np
import pytest
from PIL import Image

from mg_jax.vision import preprocess


def test_padding_is_in_the_middle():
    image = np.full((3, 8, 3), 9, np.uint8)
    square = preprocess.pad_square(image, (1, 2, 3))
    assert square.shape == (8, 8, 3)
    assert (square[2:5] == 9).all()
    assert (square[:2] == (1, 2, 3)).all() and (square[5:] == (1, 2, 3)).all()
    turned = preprocess.pad_square(image.transpose(1, 0, 2), (1, 2, 3))
    np.testing.assert_array_equal(turned, square.transpose(1, 0, 2))
    np.testing.assert_array_equal(preprocess.pad_square(square, (0, 0, 0)), square)


def test_a_picture_is_padded_with_the_mean_then_resized(rng):
    image = rng.integers(0, 256, (30, 50, 3), np.uint8)
    batch = preprocess.get("clip_pad").prepare(image, 64)
    assert list(batch) == ["high"] and batch["high"].dtype == np.uint8
    canvas = Image.new("RGB", (50, 50), (122, 116, 104))
    canvas.paste(Image.fromarray(image), (0, 10))
    expected = np.asarray(canvas.resize((64, 64), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(batch["high"], expected)
    pixels = preprocess.clip_pad.normalize(batch["high"])
    by_hand = (expected / 255 - preprocess.CLIP_MEAN) / preprocess.CLIP_STD
    np.testing.assert_allclose(pixels, by_hand, atol=1e-6)
    np.testing.assert_allclose(preprocess.clip_pad(image, 64), pixels)


def test_other_preprocessings_name_their_pixels(rng):
    image = rng.integers(0, 256, (30, 50, 3), np.uint8)
    assert list(preprocess.get("groma_pil").prepare(image, 28)) == ["pixels"]


@pytest.mark.parametrize(("source", "target"), [(256, 112), (96, 42), (48, 48), (20, 33)])
def test_low_resolution_is_not_antialiased(source, target, rng):
    high = rng.normal(size=(2, source, source, 3)).astype(np.float32)
    low = preprocess.low_from_high(high, target)
    assert low.shape == (2, target, target, 3) and low.dtype == np.float32
    shape = (2, target, target, 3)
    expected = jax.image.resize(high, shape, "linear", antialias=False)
    np.testing.assert_allclose(low, expected, atol=2e-5)
    np.testing.assert_allclose(preprocess.low_from_high(high[0], target), low[0])


@pytest.mark.shared
def test_recorded_pictures(shared):
    folder = shared / "golden" / "mg_llava" / "preproc"
    with np.load(folder / "inputs.npz") as inputs, np.load(folder / "outputs.npz") as outputs:
        for name in ("wide", "tall", "nodet"):
            high = preprocess.clip_pad(inputs[f"{name}_image_u8"], 256)
            low = preprocess.low_from_high(high, 112)
            for ours, key in ((high, "pixel_values_aux"), (low, "pixel_values")):
                recorded = outputs[f"{name}_{key}"].transpose(1, 2, 0)
                np.testing.assert_allclose(ours, recorded, atol=2e-6)

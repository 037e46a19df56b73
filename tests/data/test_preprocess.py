"""Opening pictures, and the two ways of preparing them (Groma spec 5).

`golden/resize_cv2.npz` was recorded with OpenCV 4.11: cv2.resize(image, ..., INTER_LINEAR).
"""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mg_jax.errors import UserError
from mg_jax.vision import preprocess as pp

GOLDEN = Path(__file__).parents[1] / "golden" / "resize_cv2.npz"


def test_resize_equals_cv2_bit_for_bit():
    with np.load(GOLDEN) as recorded:
        for k in range(len(recorded.files) // 2):
            image, want = recorded[f"image{k}"], recorded[f"resized{k}"]
            got = pp.resize_bilinear(image, want.shape[1], want.shape[0])
            assert got.dtype == np.uint8
            np.testing.assert_array_equal(got, want, err_msg=f"case {k}")


def test_upstream_recording(shared):
    with np.load(shared / "golden/groma/preprocess/preprocess.npz") as recorded:
        image = recorded["image_rgb_uint8"]
        resized = pp.resize_bilinear(image, 448, 448)
        np.testing.assert_array_equal(resized, recorded["mmdet_resized_rgb_uint8"])
        for prepare, key in (
            (pp.groma_mmdet, "mmdet_pixel_values_sub7"),
            (pp.groma_pil, "hf_pixel_values_sub7"),
        ):
            got = prepare(image).transpose(2, 0, 1)[:, ::7, ::7]
            np.testing.assert_allclose(got, recorded[key], atol=1e-5, rtol=0)


def test_normalize_round_trip(rng):
    image = rng.integers(0, 256, (9, 7, 3), np.uint8)
    assert pp.normalize(image).dtype == np.float32
    np.testing.assert_array_equal(pp.denormalize(pp.normalize(image)), image)


def save(image: Image.Image, suffix: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, suffix, **options)
    return out.getvalue()


GREY = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (40, 1))  # [40, 64]
COLOR = np.stack([GREY, GREY[:, ::-1], np.full_like(GREY, 90)], -1)


def test_modes(tmp_path):
    rgb = Image.fromarray(COLOR)
    np.testing.assert_array_equal(pp.load_image(save(rgb, "png")), COLOR)
    grey3 = np.repeat(GREY[..., None], 3, 2)
    np.testing.assert_array_equal(pp.load_image(save(Image.fromarray(GREY), "png")), grey3)

    alpha = Image.fromarray(np.full_like(GREY, 128))
    laid = (COLOR.astype(float) * 128 + 255.0 * 127) / 255
    for image in (rgb.convert("RGBA"), Image.fromarray(GREY).convert("LA")):
        image.putalpha(alpha)
        want = laid if image.mode == "RGBA" else (grey3 * 128.0 + 255.0 * 127) / 255
        assert np.abs(pp.load_image(save(image, "png")) - want).max() <= 1
    clear = rgb.convert("RGBA")
    clear.putalpha(0)
    assert (pp.load_image(save(clear, "png")) == 255).all()

    palette = rgb.quantize(16)
    want = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(pp.load_image(save(palette, "png")), want)
    one = pp.load_image(save(palette, "png", transparency=int(np.asarray(palette)[0, 0])))
    assert (one[0, 0] == 255).all()
    bilevel = pp.load_image(save(Image.fromarray(GREY > 100), "png"))
    assert set(np.unique(bilevel)) == {0, 255}

    cmyk = pp.load_image(save(rgb.convert("CMYK"), "jpeg", quality=95))
    assert cmyk.shape == COLOR.shape and np.abs(cmyk.astype(int) - COLOR).mean() < 12
    path = tmp_path / "a.png"
    rgb.save(path)
    np.testing.assert_array_equal(pp.load_image(path), COLOR)
    np.testing.assert_array_equal(pp.load_image(str(path)), COLOR)


def test_sixteen_bits_are_scaled_not_cut():
    deep = GREY.astype(np.uint16) * 257
    for suffix in ("png", "tiff"):
        got = pp.load_image(save(Image.fromarray(deep), suffix))
        np.testing.assert_array_equal(got[..., 0], GREY)
    real = Image.fromarray((GREY / 255).astype(np.float32))
    assert np.abs(pp.load_image(save(real, "tiff"))[..., 0].astype(int) - GREY).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(Image.fromarray(COLOR), "png", exif=exif)
    got = pp.load_image(data)
    want = COLOR
    if orientation in (5, 6, 7, 8):
        want = COLOR.transpose(1, 0, 2)
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation, ())
    np.testing.assert_array_equal(got, np.flip(want, flips))
    assert pp.image_size(data) == got.shape[1::-1]


def of_mode(mode: str) -> bytes:
    """A file of that mode, or a "turned" one."""
    rgb, deep = Image.fromarray(COLOR), GREY.astype(np.uint16) * 257
    if mode == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        return save(rgb, "png", exif=exif)
    if mode == "I;16":
        return save(Image.fromarray(deep), "png")
    if mode == "RGBA":
        rgb.putalpha(Image.fromarray(GREY))
    if mode == "P":
        return save(rgb.quantize(16), "png", transparency=3)
    return save(rgb if mode == "RGBA" else rgb.convert(mode), "jpeg" if mode == "CMYK" else "png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "L", "LA", "1", "CMYK", "P", "turned"])
def test_a_pil_picture_is_read_as_its_file(mode):
    data = of_mode(mode)
    want = pp.load_image(data)
    image = Image.open(io.BytesIO(data))
    opened, turned = image.mode, dict(image.getexif())
    np.testing.assert_array_equal(pp.from_pil(image), want)
    assert image.mode == opened and dict(image.getexif()) == turned  # as it was
    np.testing.assert_array_equal(pp.from_pil(image.copy()), want)


def test_a_pil_picture_that_is_cut_off_is_named():
    data = save(Image.fromarray(COLOR), "png")[:-40]
    with pytest.raises(UserError, match="image: the picture cannot be read to its end"):
        pp.from_pil(Image.open(io.BytesIO(data)))


def test_animation_gives_its_first_frame():
    frames = [Image.fromarray(np.full((8, 8), v, np.uint8)) for v in (10, 200)]
    data = save(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert (pp.load_image(data) == 10).all()


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    whole = save(Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)),
                 "jpeg")  # fmt: skip
    made = {
        "cut.jpg": (whole[: len(whole) // 2], "cut off"),
        "cut.png": (save(Image.fromarray(COLOR), "png")[:-40], "cut off"),
        "head.jpg": (whole[:12], "not a picture"),
        "text.jpg": (b"this is no picture at all", "not a picture"),
        "empty.jpg": (b"", "is empty"),
        "noise.png": (b"\x89PNG\r\n\x1a\n" + bytes(range(200)), "not a picture"),
    }
    out = {}
    for name, (data, message) in made.items():
        (folder / name).write_bytes(data)
        out[name] = (folder / name, message)
    return out


def test_bad_files_name_the_culprit(tmp_path):
    cases = bad_files(tmp_path)
    cases["gone.jpg"] = (tmp_path / "gone.jpg", "no such file")
    cases["folder"] = (tmp_path, "folder")
    for name, (path, message) in cases.items():
        with pytest.raises(UserError) as caught:
            pp.load_image(path)
        text = str(caught.value)
        assert str(path) in text and message in text and "\n" not in text, name
    with pytest.raises(UserError, match="image bytes"):
        pp.load_image(b"nothing")


def test_decompression_bomb():
    data = save(Image.new("1", (3000, 2000)), "png")
    with pytest.raises(UserError, match="decompression bomb"):
        pp.load_image(data, max_pixels=1_000_000)
    # Beyond twice Pillow's own limit Pillow refuses by itself.
    header = bytearray(save(Image.new("1", (8, 8)), "png"))
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    with pytest.raises(UserError, match="decompression bomb"):
        pp.load_image(bytes(header))

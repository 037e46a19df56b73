"""From a picture file to the pixels a model sees.

`load_image` opens what users have; `groma_mmdet` and `groma_pil` are the two ways upstream Groma
prepares pictures (Groma spec 5). Both squash to a square: aspect is not kept, so boxes in [0, 1]
need no change.
"""

import functools
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mg_jax.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 178_956_970  # Pillow's own limit for what may be a decompression bomb, twice
_BITS = 11  # cv2 keeps bilinear weights of 8-bit pictures as integers of so many bits


def load_image(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A picture as uint8 RGB [height, width, 3], turned as its EXIF data say.

    Transparency is laid on white; 16-bit grey and float pictures are scaled to 8 bits; CMYK,
    palette, grey and bilevel are converted; of an animation the first frame counts.
    source: a path, or the bytes of a file. Raises UserError for a missing file, one that is not a
    picture, is cut off, or has more than `max_pixels` pixels.
    """
    name = "image bytes" if isinstance(source, bytes) else str(source)
    with _opened(source, name, max_pixels) as image:
        try:
            image.load()
            image = ImageOps.exif_transpose(image)
            return np.array(_rgb(image), np.uint8)
        except UserError:
            raise
        except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as e:
            raise UserError(
                f"{name}: the picture cannot be read to its end ({e}): it is cut off or damaged"
            ) from None


def image_size(source: str | Path | bytes) -> tuple[int, int]:
    """(width, height) after EXIF rotation, from the file's head. Raises UserError as above."""
    name = "image bytes" if isinstance(source, bytes) else str(source)
    with _opened(source, name, MAX_PIXELS) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def _opened(source: str | Path | bytes, name: str, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{name}: is a folder, expected a picture file") from None
    except PermissionError:
        raise UserError(f"{name}: no permission to read it") from None
    except Image.DecompressionBombError:
        raise UserError(
            f"{name}: more than {max_pixels} pixels, a decompression bomb: make it smaller"
        ) from None
    except UnidentifiedImageError:
        what = "is empty" if _is_empty(source) else "is not a picture that can be read"
        raise UserError(f"{name}: {what}") from None
    except (OSError, ValueError, SyntaxError) as e:
        raise UserError(f"{name}: is not a picture that can be read ({e})") from None
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height}"
        image.close()
        raise UserError(
            f"{name}: {size} px is more than {max_pixels} pixels, "
            "a decompression bomb: make it smaller"
        )
    return image


def _is_empty(source: str | Path | bytes) -> bool:
    return len(source) == 0 if isinstance(source, bytes) else Path(source).stat().st_size == 0


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bits(image)).convert("RGB")
    transparent = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if transparent:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> np.ndarray:
    """Grey of more than 8 bits to uint8 by its kind's full range: 65,535, 255 or 1.

    Pillow's own conversion cuts at 255, which turns such pictures white.
    """
    values = np.asarray(image).astype(np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=65535.0, neginf=0.0)
    top = float(values.max(initial=0.0))
    if image.mode == "F":
        full = 1.0 if top <= 1.0 else 255.0 if top <= 255.0 else 65535.0
    else:
        # Mode I also holds 8-bit values in some files; 16-bit ones always mean the full range.
        full = 65535.0 if image.mode != "I" or top > 255.0 else 255.0
    return np.clip(np.rint(values * (255.0 / full)), 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=256)
def _weights(source: int, target: int, clamp: bool) -> tuple[np.ndarray, ...]:
    """Per output pixel: the two neighbours' indices (int64) and integer weights (int32).

    clamp: outside the picture all weight goes to the border pixel. cv2 does that across only;
    down the weights stay as they are and both rows are the border's, which rounds differently.
    """
    # cv2 computes the coordinate in float32 from a double scale.
    at = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    low = np.floor(at).astype(np.int64)
    share = at - low.astype(np.float32)
    if clamp:
        share[(low < 0) | (low >= source - 1)] = 0
    one = np.float32(1 << _BITS)
    left = np.rint((np.float32(1) - share) * one).astype(np.int32)
    right = np.rint(share * one).astype(np.int32)
    return np.clip(low, 0, source - 1), np.clip(low + 1, 0, source - 1), left, right


def resize_bilinear(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """cv2's INTER_LINEAR for uint8 [h, w, c]: no antialiasing, integer arithmetic, bit for bit.

    Returns uint8 [height, width, c].
    """
    if image.shape[:2] == (height, width):
        return image.copy()
    x0, x1, a0, a1 = _weights(image.shape[1], width, True)
    y0, y1, b0, b1 = _weights(image.shape[0], height, False)
    wide = image.astype(np.int32)
    # The second pass drops bits before it adds, as cv2's vector code does.
    rows = (wide[:, x0] * a0[:, None] + wide[:, x1] * a1[:, None]) >> 4
    out = (rows[y0] * b0[:, None, None]) >> 16
    out += (rows[y1] * b1[:, None, None]) >> 16
    return np.clip((out + 2) >> 2, 0, 255).astype(np.uint8)


def normalize(
    image: np.ndarray,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> np.ndarray:
    """uint8 RGB [..., 3] to float32: (x - 255 mean) / (255 std)."""
    mean32 = np.asarray(mean, np.float64) * 255
    scale = 1 / (np.asarray(std, np.float64) * 255)
    return ((image.astype(np.float32) - mean32.astype(np.float32)) * scale).astype(np.float32)


def denormalize(
    pixels: np.ndarray,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> np.ndarray:
    """The uint8 RGB picture that `normalize` was given."""
    image = pixels * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def groma_mmdet(image: np.ndarray, size: int = 448) -> np.ndarray:
    """Groma spec 5 (a): squash to size x size as cv2 does. uint8 [h,w,3] -> float32 [S,S,3]."""
    return normalize(resize_bilinear(image, size, size))


def groma_pil(image: np.ndarray, size: int = 448) -> np.ndarray:
    """Groma spec 5 (b): squash by Pillow's bicubic, antialiased. uint8 -> float32 [S,S,3]."""
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    return normalize(np.asarray(resized))


PREPROCESSING: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "groma_mmdet": groma_mmdet,
    "groma_pil": groma_pil,
}


def get(name: str) -> Callable[[np.ndarray, int], np.ndarray]:
    """The function (uint8 [h,w,3], size) -> float32 [size,size,3] of a name in PREPROCESSING.

    Raises UserError for another name.
    """
    if name not in PREPROCESSING:
        raise UserError(f"preprocess={name!r}: choose one of {', '.join(PREPROCESSING)}")
    return PREPROCESSING[name]

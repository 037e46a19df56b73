"""From a picture file to the pixels a model sees.

`load_image` opens what users have; `groma_mmdet` and `groma_pil` are the two ways upstream Groma
prepares pictures (Groma spec 5). Both squash to a square: aspect is not kept, so boxes in [0, 1]
need no change. `clip_pad` pads to a square first, as LLaVA and MG-LLaVA do (MG-LLaVA spec 5);
`clip_squash` is Ferret's global picture.
"""

import functools
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mg_jax.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_PIXELS = 178_956_970  # Pillow's own limit for what may be a decompression bomb, twice
_ORIENTATION = 0x0112  # EXIF's number of it
_BITS = 11  # cv2 keeps bilinear weights of 8-bit pictures as integers of so many bits
_BLOCK = 1 << 16  # numbers normalised at a time


def load_image(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A picture as uint8 RGB [height, width, 3], turned as its EXIF data say.

    Transparency is laid on white; 16-bit grey and float pictures are scaled to 8 bits; CMYK,
    palette, grey and bilevel are converted; of an animation the first frame counts.
    source: a path, or the bytes of a file. Raises UserError for a missing file, one that is not a
    picture, is cut off, or has more than `max_pixels` pixels.
    """
    name = "image bytes" if isinstance(source, bytes) else str(source)
    with _opened(source, name, max_pixels) as image:
        return from_pil(image, name)


def from_pil(image: Image.Image, name: str = "image") -> np.ndarray:
    """An open picture as `load_image` reads a file of it; the picture stays as it is.

    name: what to call it in errors. Raises UserError for one that is cut off.
    """
    try:
        image.load()
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        return np.array(_rgb(image), np.uint8)
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as e:
        raise UserError(
            f"{name}: the picture cannot be read to its end ({e}): it is cut off or damaged"
        ) from None


def image_size(source: str | Path | bytes) -> tuple[int, int]:
    """(width, height) after EXIF rotation, from the file's head. Raises UserError as above."""
    name = "image bytes" if isinstance(source, bytes) else str(source)
    with _opened(source, name, MAX_PIXELS) as image:
        return image.size[::-1] if _on_its_side(image) else image.size


def is_turned(source: str | Path | bytes) -> bool:
    """Whether EXIF rotation exchanges the picture's sides. Raises UserError as `image_size`."""
    name = "image bytes" if isinstance(source, bytes) else str(source)
    with _opened(source, name, MAX_PIXELS) as image:
        return _on_its_side(image)


def _on_its_side(image: Image.Image) -> bool:
    return image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)


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
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


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
    channels = image.shape[2]
    x0, x1, a0, a1 = (np.repeat(w, channels) for w in _weights(image.shape[1], width, True))
    y0, y1, b0, b1 = _weights(image.shape[0], height, False)
    lines = image.reshape(image.shape[0], -1)  # rows of numbers: one long inner loop
    x0, x1 = (x * channels + np.tile(np.arange(channels), width) for x in (x0, x1))
    rows = np.multiply(np.take(lines, x0, 1), a0, dtype=np.int32)
    rows += np.multiply(np.take(lines, x1, 1), a1, dtype=np.int32)
    rows >>= 4  # the second pass drops bits before it adds, as cv2's vector code does
    out, low = rows[y0], rows[y1]
    for part, weight in ((out, b0), (low, b1)):
        part *= weight[:, None]
        part >>= 16
    out += low
    out += 2
    out >>= 2
    return np.clip(out, 0, 255, out=out).astype(np.uint8).reshape(height, width, channels)


def normalize(
    image: np.ndarray,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> np.ndarray:
    """uint8 RGB [..., W, 3] to float32: (x - 255 mean) / (255 std)."""
    width, channels = image.shape[-2:]
    mean32 = np.tile((np.asarray(mean, np.float64) * 255).astype(np.float32), width)
    scale = np.tile(1 / (np.asarray(std, np.float64) * 255), width)
    lines = image.reshape(-1, width * channels)  # long inner loops, in blocks that fit a cache
    out = np.empty(lines.shape, np.float32)
    rows = max(_BLOCK // (width * channels), 1)
    for start in range(0, len(lines), rows):
        part = out[start : start + rows]
        np.subtract(lines[start : start + rows], mean32, out=part)
        np.multiply(part, scale, out=part, casting="same_kind")  # in float64, then rounded
    return out.reshape(image.shape)


def denormalize(
    pixels: np.ndarray,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> np.ndarray:
    """The uint8 RGB picture that `normalize` was given."""
    image = pixels * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Preprocessing:
    """Pixels of a model: `squash` (uint8 [h,w,3], size) -> uint8 [S,S,3], then `normalize`.

    Called with a picture and a size it does both. A data pipeline does the second half last, since
    bytes are cheaper to carry than floats. name: of the pixels in a batch.
    """

    squash: Callable[[np.ndarray, int], np.ndarray]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    name: str = "pixels"

    def prepare(self, image: np.ndarray, size: int) -> dict[str, np.ndarray]:
        """uint8 [h,w,3] -> {name: uint8 [S,S,3]}."""
        return {self.name: self.squash(image, size)}

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [...,3] -> float32."""
        return normalize(pixels, self.mean, self.std)

    def __call__(self, image: np.ndarray, size: int = 448) -> np.ndarray:
        """uint8 [h,w,3] -> float32 [S,S,3]."""
        return self.normalize(self.squash(image, size))


def _squash_cv2(image: np.ndarray, size: int) -> np.ndarray:
    return resize_bilinear(image, size, size)


def _squash_pil(image: np.ndarray, size: int) -> np.ndarray:
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def pad_square(image: np.ndarray, fill: tuple[int, ...]) -> np.ndarray:
    """uint8 [h,w,3] in the middle of a square of the colour `fill`; an odd pixel goes behind."""
    height, width = image.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    out = np.empty((side, side, 3), np.uint8)
    out[:] = fill
    out[top : top + height, left : left + width] = image
    return out


def _pad_clip(image: np.ndarray, size: int) -> np.ndarray:
    return _squash_pil(pad_square(image, tuple(int(255 * m) for m in CLIP_MEAN)), size)


def low_from_high(high: np.ndarray, size: int) -> np.ndarray:
    """The low-resolution picture that MG-LLaVA's ViT sees: float32 [..., S, S, 3], made from the
    normalised high-resolution one.

    Bilinear between pixel centres without antialiasing, as PyTorch's interpolate: a fresh
    resize of the original would look different (spec 5). NumPy reference of what the model does.
    """
    low, following, share = _centres(high.shape[-2], size)
    rows = high[..., low, :] * (1 - share)[:, None] + high[..., following, :] * share[:, None]
    low, following, share = _centres(high.shape[-3], size)
    share = share[:, None, None]
    return rows[..., low, :, :] * (1 - share) + rows[..., following, :, :] * share


def _centres(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per output pixel the two neighbours' indices and the share of the second, float32."""
    step = np.float32(source / target)
    at = step * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    at = np.maximum(at, np.float32(0))
    low = at.astype(np.int64)
    return low, np.minimum(low + 1, source - 1), at - low.astype(np.float32)


groma_mmdet = Preprocessing(_squash_cv2)  # Groma spec 5 (a): as cv2 resizes
groma_pil = Preprocessing(_squash_pil)  # Groma spec 5 (b): Pillow's bicubic, antialiased
# MG-LLaVA spec 5: Pillow's bicubic of the picture padded to a square
clip_pad = Preprocessing(_pad_clip, CLIP_MEAN, CLIP_STD, "high")
clip_squash = Preprocessing(_squash_pil, CLIP_MEAN, CLIP_STD, "low")  # Ferret spec 7.1

PREPROCESSING = {
    "groma_mmdet": groma_mmdet, "groma_pil": groma_pil, "clip_pad": clip_pad,
    "clip_squash": clip_squash,
}  # fmt: skip


def get(name: str) -> Preprocessing:
    """The one of a name in PREPROCESSING, to be called as (uint8 [h,w,3], size).

    Raises UserError for another name.
    """
    if name not in PREPROCESSING:
        raise UserError(f"preprocess={name!r}: choose one of {', '.join(PREPROCESSING)}")
    return PREPROCESSING[name]

"""Object images: a region cut from the picture's own pixels, for a model to look at closely."""

from dataclasses import dataclass

import numpy as np

from mg_jax.errors import BadRecord, UserError
from mg_jax.vision.preprocess import Preprocessing


@dataclass(frozen=True)
class CropAugment:
    """What is changed of object images while training; zeros change nothing.

    jitter: each side of the box moves by up to this share of the box's width or height, within the
    picture. light: brightness and contrast change by up to this share. flip: probability of a
    mirrored crop; off by default, for an answer may depend on which side is which.
    """

    jitter: float = 0.1
    light: float = 0.2
    flip: float = 0.0


def crop(
    picture: np.ndarray,
    box: tuple[float, ...],
    preprocessing: Preprocessing,
    size: int,
    where: str = "object image",
    augment: CropAugment | None = None,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """uint8 [size,size,3]: the pixels of `picture` [H,W,3] that `box` touches, zoomed.

    box: xyxy in [0, 1] of the picture. Whole pixels are cut, at least one, and prepared as a
    picture of its own: clip_pad pads them to a square. augment: needs `rng`. Raises BadRecord,
    beginning with `where`, for a box without area or outside the picture.
    """
    height, width = picture.shape[:2]
    corners = np.asarray(box, np.float64)
    check_crop(corners, where)
    if augment is not None:
        if rng is None:
            raise ValueError("augmentation needs a generator")
        corners = _jittered(corners, augment.jitter, rng)
    scaled = np.clip(corners, 0.0, 1.0) * [width, height, width, height]
    x0, y0 = (int(v) for v in np.floor(scaled[:2] + 1e-6))
    x1, y1 = (int(v) for v in np.ceil(scaled[2:] - 1e-6))
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    cut = picture[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
    if augment is not None and rng is not None:
        cut = _lit(cut, augment.light, rng)
        if rng.random() < augment.flip:
            cut = np.ascontiguousarray(cut[:, ::-1])
    return preprocessing.squash(cut, size)


def check_crop(box: np.ndarray, where: str) -> None:
    """Raises BadRecord for a box xyxy in [0, 1] that has no pixels of the picture."""
    shown = "[" + ", ".join(f"{v:.6g}" for v in box) + "]"
    if not np.isfinite(box).all() or box[0] >= box[2] or box[1] >= box[3]:
        raise BadRecord(f"{where}: box {shown} has no area to be cut out")
    if box[0] >= 1 or box[1] >= 1 or box[2] <= 0 or box[3] <= 0:
        raise BadRecord(f"{where}: box {shown} lies outside the picture, in [0, 1] of its sides")


def check_augment(augment: CropAugment) -> None:
    """Raises UserError naming a value that is no share."""
    for name in ("jitter", "light", "flip"):
        value = getattr(augment, name)
        limit = 0.5 if name == "jitter" else 1.0
        if not 0 <= value <= limit or (name == "jitter" and value == limit):
            raise UserError(f"config.crop_augment.{name}: {value:g} is not between 0 and {limit:g}")


def _jittered(box: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    side = np.tile(box[2:] - box[:2], 2)
    return np.clip(box + rng.uniform(-share, share, 4) * side, 0.0, 1.0)


def _lit(cut: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    brightness, contrast = 1 + rng.uniform(-share, share, 2)
    mean = cut.mean()
    values = (cut - mean) * contrast + mean * brightness
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)

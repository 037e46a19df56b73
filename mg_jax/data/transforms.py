"""Detection augmentation (Groma spec 3): resize, crop, squash, flip, with boxes carried exactly.

A view is a box of the original picture, shown squashed to a square and perhaps mirrored. All the
steps of the spec are affine and aligned with the axes, so they are composed first and the pixels
are sampled once, bilinearly without antialiasing as cv2 would. Box coordinates never round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mg_jax.data.sources.base import HEADS
from mg_jax.example import Example
from mg_jax.vision.preprocess import normalize, resize_bilinear

LABEL_WORDS = 4  # words of a thing that are told apart: "red star", "striped"


@dataclass(frozen=True)
class Augment:
    """The numbers of spec 3, in pixels for a 448-px model; `scaled` adapts them to another.

    short: choices for the shorter side. long: most for the longer one. crop: range of each side
    of the crop. min_side: boxes at most so wide or high in the model's view are dropped.
    area: for the sa1b head instead, open range of areas. flip: probability. tries: crops drawn
    until one holds a box; after that the picture is not cropped.
    """

    short: tuple[float, ...] = (400, 500, 600)
    long: float = 4200
    crop: tuple[float, float] = (448, 896)
    min_side: float = 2
    area: tuple[float, float] = (196, 160_000)
    flip: float = 0.5
    tries: int = 10

    def scaled(self, size: int) -> "Augment":
        """The same for a model of `size` pixels, lengths in proportion, areas to its square."""
        s = size / 448
        return Augment(
            tuple(v * s for v in self.short),
            self.long * s,
            (self.crop[0] * s, self.crop[1] * s),
            self.min_side * s,
            (self.area[0] * s * s, self.area[1] * s * s),
            self.flip,
            self.tries,
        )


@dataclass(frozen=True)
class View:
    """What the model sees: `box` (x0, y0, x1, y1 in pixels of the original, floats), mirrored or
    not, of a width x height picture."""

    box: tuple[float, float, float, float]
    width: int
    height: int
    mirrored: bool = False

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """xyxy in [0, 1] of the original, [R, 4], to xyxy of the view; not clipped. float64."""
        x0, y0, x1, y1 = self.box
        size = np.array([self.width, self.height] * 2, np.float64)
        out = boxes.astype(np.float64) * size
        out = (out - np.array([x0, y0, x0, y0])) / np.array([x1 - x0, y1 - y0] * 2)
        if self.mirrored:
            out = np.stack([1 - out[:, 2], out[:, 1], 1 - out[:, 0], out[:, 3]], 1)
        return out

    def pixels(self, image: np.ndarray, size: int) -> np.ndarray:
        """The view of uint8 [h, w, 3] as uint8 [size, size, 3]."""
        whole = (0.0, 0.0, float(self.width), float(self.height))
        if self.box == whole:
            out = resize_bilinear(image, size, size)
        else:
            warped = Image.fromarray(image).transform(
                (size, size), Image.Transform.EXTENT, self.box, Image.Resampling.BILINEAR
            )
            out = np.asarray(warped)
        return out[:, ::-1] if self.mirrored else out


def draw_view(
    width: int, height: int, boxes: np.ndarray, rng: np.random.Generator, augment: Augment
) -> View:
    """A random view of a picture with boxes [R, 4], xyxy in [0, 1].

    Resize: one of `short` for the shorter side unless the longer one would pass `long`. Crop:
    height and width each drawn from `crop` in the resized picture, cut to its size, at a random
    place; as mmdet's RandomCrop, a box is in the crop when any area of it is, and a crop without
    box is drawn again. Flip.
    """
    short = augment.short[rng.integers(len(augment.short))]
    scale = min(augment.long / max(width, height), short / min(width, height))
    w, h = max(int(width * scale + 0.5), 1), max(int(height * scale + 0.5), 1)
    view = View((0.0, 0.0, float(width), float(height)), width, height)
    for _ in range(augment.tries):
        low, high = (round(v) for v in augment.crop)
        ch = int(rng.integers(min(h, low), min(h, high) + 1))
        cw = int(rng.integers(min(w, low), min(w, high) + 1))
        y, x = int(rng.integers(h - ch + 1)), int(rng.integers(w - cw + 1))
        # Back to pixels of the original, each axis by its own exact ratio.
        sx, sy = width / w, height / h
        box = (x * sx, y * sy, min((x + cw) * sx, width), min((y + ch) * sy, height))
        drawn = View(box, width, height)
        inside = np.clip(drawn.boxes(boxes), 0, 1)
        if ((inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])).any():
            view = drawn
            break
    return View(view.box, width, height, bool(rng.random() < augment.flip))


def keep_boxes(boxes: np.ndarray, size: int, head: str, augment: Augment) -> np.ndarray:
    """Bool [R]: which clipped boxes of the view are large enough (spec 3).

    coco: both sides above `min_side` pixels. sa1b: the area inside the open range `area`.
    """
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0) * size
    if head == "sa1b":
        area = sides.prod(1)
        return (area > augment.area[0]) & (area < augment.area[1])
    return (sides > augment.min_side).all(1)


def detection_record(
    example: Example,
    rng: np.random.Generator,
    size: int,
    slots: int,
    augment: bool | Augment = True,
    words: Sequence[str] = (),
) -> dict[str, Any] | None:
    """A picture and its boxes as the detector trains on them.

    size: side of the model's square view in pixels. slots: R, room for boxes; where there are
    more, a random choice stays. augment: True for spec 3 in proportion to `size`, an `Augment` of
    your own numbers for this size, False for the whole picture.
    The objectness head is `example.meta["head"]`, coco where nothing is said. words: known words
    of labels, see `label_ids`.
    Returns pixels [S, S, 3] float32 normalised, boxes [R, 4] float32 xyxy in [0, 1] of the view
    (zeros beyond the mask), region_mask [R] bool, head int32 (0 coco, 1 sa1b), with words
    labels [R, LABEL_WORDS] int32, and dropped, how many boxes had no slot, which `batches` counts;
    None where no box is left.
    """
    if not example.objects:
        return None
    head = example.meta.get("head", "coco")
    numbers = augment if isinstance(augment, Augment) else Augment().scaled(size)
    boxes = np.array([region.box for region in example.objects], np.float64)
    if augment:
        view = draw_view(example.width, example.height, boxes, rng, numbers)
    else:
        whole = (0.0, 0.0, float(example.width), float(example.height))
        view = View(whole, example.width, example.height)
    boxes = np.clip(view.boxes(boxes), 0, 1)
    kept = keep_boxes(boxes, size, head, numbers)
    if not kept.any():
        return None
    return {
        "pixels": normalize(view.pixels(example.pixels(), size)),
        **_targets(boxes[kept], label_ids(example, words)[kept], slots, head, rng),
    }


def detection_targets(
    example: Example, rng: np.random.Generator, slots: int, words: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Boxes of the whole picture, keys as of `detection_record` but pixels; None without any."""
    if not example.objects:
        return None
    boxes = np.array([region.box for region in example.objects], np.float64)
    head = example.meta.get("head", "coco")
    return _targets(boxes, label_ids(example, words), slots, head, rng)


def label_ids(example: Example, words: Sequence[str]) -> np.ndarray:
    """[objects, LABEL_WORDS] int32: which of `words` say what the objects are, -1 for none.

    The words of a label ("red star" has two), and attributes where the source tells them, in
    meta["objects"]; words beyond LABEL_WORDS, or not among `words`, are left out.
    """
    index = {word: i for i, word in enumerate(words)}
    ids = np.full((len(example.objects), LABEL_WORDS if words else 0), -1, np.int32)
    told = example.meta.get("objects")
    told = told if isinstance(told, list) and len(told) == len(ids) else [{}] * len(ids)
    for row, region, attributes in zip(ids, example.objects, told, strict=True):
        said = (region.label or "").split()
        said += map(str, attributes.values()) if isinstance(attributes, Mapping) else []
        known = list(dict.fromkeys(index[word] for word in said if word in index))[:LABEL_WORDS]
        row[: len(known)] = known
    return ids


def _targets(boxes, labels, slots, head, rng) -> dict[str, Any]:
    dropped = max(len(boxes) - slots, 0)
    if dropped:
        chosen = np.sort(rng.permutation(len(boxes))[:slots])
        boxes, labels = boxes[chosen], labels[chosen]
    out = np.zeros((slots, 4), np.float32)
    out[: len(boxes)] = boxes
    named = np.full((slots, labels.shape[1]), -1, np.int32)
    named[: len(boxes)] = labels
    return {
        "boxes": out,
        "region_mask": np.arange(slots) < len(boxes),
        "head": np.asarray(HEADS.index(head), np.int32),
        **({"labels": named} if named.size else {}),
        "dropped": dropped,
    }

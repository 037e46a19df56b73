"""Boxes: formats, overlaps, suppression, and the way between a picture and a model's view of it.

A box is (x1, y1, x2, y2), float32, in [0, 1] of the original image. Coordinates are edges, not
pixel indices: x = 0 is the left edge of the first pixel, x = 1 (or the width, in pixels) the right
edge of the last one. Arithmetic works alike on NumPy arrays and, under jit too, on JAX arrays.
"""

from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from mg_jax.errors import UserError

AnyArray = Any  # np.ndarray, jax.Array or nested sequences of numbers


def _arrays(*values: AnyArray) -> tuple:
    """The namespace to compute in, then the values as floating-point arrays of it."""
    if any(isinstance(v, jax.Array) for v in values):
        return jnp, *(jnp.asarray(v) for v in values)
    arrays = [np.asarray(v) for v in values]
    return np, *(a if a.dtype.kind == "f" else a.astype(np.float64) for a in arrays)


def cxcywh_to_xyxy(boxes: AnyArray) -> AnyArray:
    """[..., 4] centre and size -> corners; a negative size gives reversed corners."""
    xp, boxes = _arrays(boxes)
    centre, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return xp.concatenate([centre - half, centre + half], axis=-1)


def xyxy_to_cxcywh(boxes: AnyArray) -> AnyArray:
    """[..., 4] corners -> centre and size."""
    xp, boxes = _arrays(boxes)
    low, high = boxes[..., :2], boxes[..., 2:]
    return xp.concatenate([(low + high) * 0.5, high - low], axis=-1)


def area(boxes: AnyArray) -> AnyArray:
    """[..., 4] ordered corners -> [...] areas."""
    _, boxes = _arrays(boxes)
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def clip(boxes: AnyArray, width: float = 1.0, height: float = 1.0) -> AnyArray:
    """[..., 4] corners moved onto the image where they lie outside it."""
    xp, boxes = _arrays(boxes)
    sides = (width, height, width, height)
    return xp.stack([xp.clip(boxes[..., i], 0.0, s) for i, s in enumerate(sides)], axis=-1)


def paired_iou(a: AnyArray, b: AnyArray) -> AnyArray:
    """Intersection over union of boxes [..., 4] with boxes [..., 4], broadcast; 0 / 0 is 0."""
    xp, a, b = _arrays(a, b)
    inter, union = _inter_union(xp, a, b)
    return _ratio(xp, inter, union)


def paired_giou(a: AnyArray, b: AnyArray) -> AnyArray:
    """Generalized IoU, in [-1, 1], of boxes [..., 4] with boxes [..., 4], broadcast."""
    xp, a, b = _arrays(a, b)
    inter, union = _inter_union(xp, a, b)
    size = xp.maximum(a[..., 2:], b[..., 2:]) - xp.minimum(a[..., :2], b[..., :2])
    hull = size[..., 0] * size[..., 1]
    return _ratio(xp, inter, union) - _ratio(xp, hull - union, hull)


def iou(a: AnyArray, b: AnyArray) -> AnyArray:
    """IoU of every box of [..., N, 4] with every box of [..., M, 4] -> [..., N, M]."""
    _, a, b = _arrays(a, b)
    return paired_iou(a[..., :, None, :], b[..., None, :, :])


def giou(a: AnyArray, b: AnyArray) -> AnyArray:
    """Generalized IoU of every box of [..., N, 4] with every box of [..., M, 4] -> [..., N, M]."""
    _, a, b = _arrays(a, b)
    return paired_giou(a[..., :, None, :], b[..., None, :, :])


def _inter_union(xp, a, b):
    low = xp.maximum(a[..., :2], b[..., :2])
    size = xp.maximum(xp.minimum(a[..., 2:], b[..., 2:]) - low, 0.0)
    inter = size[..., 0] * size[..., 1]
    return inter, area(a) + area(b) - inter


def _ratio(xp, part, whole):
    # two selections: a gradient through an unselected 0 / 0 would be NaN
    some = whole > 0
    return xp.where(some, part / xp.where(some, whole, 1.0), 0.0)


def nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    valid: Bool[Array, " N"],
    iou_threshold: float,
    score_threshold: float,
    max_out: int,
    *,
    fallback: bool = True,
) -> tuple[Int[Array, " max_out"], Bool[Array, " max_out"]]:
    """Greedy non-maximum suppression with fixed shapes (Groma spec 2.4) -> (index, keep).

    Of the valid boxes with score > `score_threshold` (a threshold <= 0 admits every valid one), in
    descending score and equal scores in input order, each box is kept unless its IoU with a kept
    one exceeds `iou_threshold`. `index` holds the first `max_out` of them in that order, `keep`
    says which slots are filled; an empty slot has index 0. `fallback`: when no score passes, the
    best-scoring valid box alone is kept. A NaN score counts as invalid. Works under jit and vmap;
    in a sharded batch, run it in `shard_map`, since the loop ends when the whole batch is settled.
    """
    boxes, scores, valid = (jnp.asarray(a) for a in (boxes, scores, valid))
    count = boxes.shape[0]
    known = valid & ~jnp.isnan(scores)
    passing = known & jnp.logical_or(score_threshold <= 0, scores > score_threshold)
    order = jnp.argsort(jnp.where(passing, -scores, jnp.inf), stable=True).astype(jnp.int32)
    ranked, alive = boxes[order], passing[order]
    earlier = jnp.arange(count)[:, None] < jnp.arange(count)[None, :]
    suppresses = (iou(ranked, ranked) > iou_threshold) & earlier

    # Each round settles at least one more rank, and in practice many: a box is kept when no box
    # kept by the last round suppresses it. The fixed point is unique, so it is the greedy answer.
    def settle(state):
        kept, _ = state
        return alive & ~jnp.any(suppresses & kept[:, None], axis=0), kept

    def unsettled(state):
        return jnp.any(state[0] != state[1])

    kept, _ = jax.lax.while_loop(unsettled, settle, (alive, ~alive))
    slots = jnp.argsort(~kept, stable=True)[:max_out]
    slots = jnp.pad(slots, (0, max_out - slots.shape[0]), constant_values=count - 1)
    keep = kept[slots] & (jnp.arange(max_out) < count)
    index = jnp.where(keep, order[slots], 0)
    if fallback:
        finite = jnp.maximum(scores, jnp.finfo(scores.dtype).min)  # -inf is left to the unknown
        best = jnp.argmax(jnp.where(known, finite, -jnp.inf)).astype(jnp.int32)
        lone = jnp.any(known) & ~jnp.any(passing)
        index = index.at[0].set(jnp.where(lone, best, index[0]))
        keep = keep.at[0].set(keep[0] | lone)
    return index, keep


def check_boxes(
    boxes: AnyArray, width: float = 1.0, height: float = 1.0, *, clip_outside: bool = False
) -> np.ndarray:
    """Boxes [N, 4] or [4] in an image of `width` x `height` -> the same, checked, float64.

    Raises UserError naming the first box that is not four finite numbers, is reversed, has no area
    or leaves the image by more than 1e-5 of its side; within that tolerance it is clipped. With
    `clip_outside` a box is clipped to the image, and only one wholly outside raises.
    """
    try:
        checked = np.asarray(boxes, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"boxes {boxes!r}: give four numbers x1,y1,x2,y2 per box") from None
    if checked.size == 0:
        return checked.reshape(0, 4)
    if checked.ndim not in (1, 2) or checked.shape[-1] != 4:
        raise UserError(f"boxes of shape {checked.shape}: give four numbers x1,y1,x2,y2 per box")
    inside = clip(checked, width, height)
    slack = 1e-5 * np.array([width, height, width, height])
    for i, (box, cut) in enumerate(zip(checked.reshape(-1, 4), inside.reshape(-1, 4), strict=True)):
        name = f"box {i} [{', '.join(f'{v:g}' for v in box)}]"
        limits = f"0..{width:g} in x and 0..{height:g} in y"
        if not np.isfinite(box).all():
            raise UserError(f"{name} has a value that is no finite number; give numbers {limits}")
        x1, y1, x2, y2 = box
        if x2 < x1 or y2 < y1:
            ordered = [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]
            mend = ", ".join(f"{v:g}" for v in ordered)
            raise UserError(
                f"{name} is reversed; corners are x1, y1, x2, y2: did you mean [{mend}]?"
            )
        if x1 == x2 or y1 == y2:
            raise UserError(f"{name} has no area; give x1 < x2 and y1 < y2")
        if cut[0] == cut[2] or cut[1] == cut[3]:
            raise UserError(f"{name} lies outside the image; its coordinates are {limits}")
        if not clip_outside and np.any(np.abs(box - cut) > slack):
            raise UserError(f"{name} leaves the image; clip it to {limits}")
    return inside


@dataclass(frozen=True)
class BoxSpace:
    """An image's original size, and how a model sees it: an affine map per axis, kept in float64.

    Built by `squash`, `pad` or `tiles`, or step by step: `BoxSpace.original(w, h).crop(...)
    .resize(...).flip()`, each step in pixels of the view that the step before made. Boxes and
    points are [..., 4] and [..., 2]. NumPy input is mapped in float64 and comes back in its own
    dtype, so a round trip is exact to 1e-9 of the long side in float64; float32 keeps 1e-6 of the
    long side, which is far below half a pixel. Nothing is clipped: a crop leaves boxes outside.
    """

    width: int  # of the original image, pixels
    height: int
    view_width: int  # of what the model sees, pixels
    view_height: int
    scale: tuple[float, float] = (1.0, 1.0)  # view pixels per original pixel; x < 0: mirrored
    offset: tuple[float, float] = (0.0, 0.0)  # where the original's corner lies, view pixels
    rows: int = 1  # of equal tiles that the view is cut into
    columns: int = 1

    def __post_init__(self):
        for name in ("width", "height", "view_width", "view_height", "rows", "columns"):
            _check_whole(name, getattr(self, name))

    @classmethod
    def original(cls, width: int, height: int) -> "BoxSpace":
        """The image seen as it is."""
        return cls(width, height, width, height)

    @classmethod
    def squash(cls, width: int, height: int, size: int) -> "BoxSpace":
        """Resized to `size` x `size`; the aspect ratio is not kept (Groma)."""
        return cls.original(width, height).resize(size, size)

    @classmethod
    def pad(cls, width: int, height: int, size: int, align: str = "centre") -> "BoxSpace":
        """Padded to a square, then resized to `size` x `size`.

        `align` "centre" puts (long - short) // 2 pixels before the short side (LLaVA and its
        descendants), "top_left" puts all padding behind (OWLv2).
        """
        side = max(width, height)
        left, top = _margins(side - width, side - height, align)
        return cls.original(width, height).crop(-left, -top, side, side).resize(size, size)

    @classmethod
    def tiles(
        cls,
        width: int,
        height: int,
        rows: int,
        columns: int,
        size: int,
        *,
        keep_aspect: bool = False,
        align: str = "centre",
    ) -> "BoxSpace":
        """Resized to a canvas of `rows` x `columns` tiles of `size` pixels.

        The canvas is filled (Ferret-v2), or with `keep_aspect` the image is fitted into it, its
        sides rounded to whole pixels, and padded; `align` as in `pad`.
        """
        for name, value in (("rows", rows), ("columns", columns), ("size", size)):
            _check_whole(name, value)
        canvas = (columns * size, rows * size)
        space = cls.original(width, height)
        if keep_aspect:
            factor = min(canvas[0] / width, canvas[1] / height)
            fitted = [max(1, round(side * factor)) for side in (width, height)]
            margins = _margins(canvas[0] - fitted[0], canvas[1] - fitted[1], align)
            space = space.resize(*fitted).crop(-margins[0], -margins[1], *canvas)
        return replace(space.resize(*canvas), rows=rows, columns=columns)

    def resize(self, width: int, height: int) -> "BoxSpace":
        """The view stretched to `width` x `height` pixels."""
        gain = (width / self.view_width, height / self.view_height)
        return self._step(width, height, gain, (0.0, 0.0))

    def crop(self, left: int, top: int, width: int, height: int) -> "BoxSpace":
        """The part of the view at (left, top), in its pixels; what lies outside is padding."""
        return self._step(width, height, (1.0, 1.0), (-left, -top))

    def flip(self) -> "BoxSpace":
        """The view mirrored left to right."""
        return self._step(self.view_width, self.view_height, (-1.0, 1.0), (self.view_width, 0.0))

    def _step(self, width, height, gain, shift):
        if self.rows * self.columns > 1:
            raise UserError("BoxSpace: a view already cut into tiles takes no further step")
        return replace(
            self,
            view_width=width,
            view_height=height,
            scale=tuple(g * s for g, s in zip(gain, self.scale, strict=True)),
            offset=tuple(g * o + s for g, o, s in zip(gain, self.offset, shift, strict=True)),
        )

    @property
    def content(self) -> tuple[float, float, float, float]:
        """The box, in view pixels, that the whole original image covers; the rest is padding."""
        corners = [
            sorted((o, o + s * side))
            for o, s, side in zip(self.offset, self.scale, (self.width, self.height), strict=True)
        ]
        return corners[0][0], corners[1][0], corners[0][1], corners[1][1]

    def to_view(self, boxes: AnyArray) -> AnyArray:
        """Boxes in [0, 1] of the original -> in [0, 1] of the view."""
        return _map(boxes, *self._forward())

    def to_original(self, boxes: AnyArray) -> AnyArray:
        """Boxes in [0, 1] of the view -> in [0, 1] of the original."""
        return _map(boxes, *self._backward())

    def points_to_view(self, points: AnyArray) -> AnyArray:
        """Points (x, y) in [0, 1] of the original -> in [0, 1] of the view."""
        return _map(points, *self._forward())

    def points_to_original(self, points: AnyArray) -> AnyArray:
        """Points (x, y) in [0, 1] of the view -> in [0, 1] of the original."""
        return _map(points, *self._backward())

    def to_pixels(self, boxes: AnyArray) -> AnyArray:
        """Boxes, or points, in [0, 1] of the original -> in its pixels (edges, not indices)."""
        return _map(boxes, (self.width, self.height), (0.0, 0.0))

    def from_pixels(self, boxes: AnyArray) -> AnyArray:
        """Boxes, or points, in pixels of the original -> in [0, 1] of it."""
        return _map(boxes, (1 / self.width, 1 / self.height), (0.0, 0.0))

    def points_to_tiles(self, points: AnyArray) -> tuple[AnyArray, AnyArray]:
        """Points in [0, 1] of the original -> (tile [...] int32 row by row, points in that tile).

        A point on an inner border belongs to the tile behind it, one outside the view to the
        nearest tile, so that only such a point leaves [0, 1] of its tile.
        """
        xp, view = _arrays(self.points_to_view(points))
        x, y = view[..., 0] * self.columns, view[..., 1] * self.rows
        column = xp.clip(xp.floor(x), 0.0, self.columns - 1.0)
        row = xp.clip(xp.floor(y), 0.0, self.rows - 1.0)
        tile = (row * self.columns + column).astype(xp.int32)
        return tile, xp.stack([x - column, y - row], axis=-1)

    def points_from_tiles(self, tile: AnyArray, points: AnyArray) -> AnyArray:
        """Inverse of `points_to_tiles`."""
        xp, tile, points = _arrays(tile, points)
        row, column = tile // self.columns, tile % self.columns
        x = (points[..., 0] + column.astype(points.dtype)) / self.columns
        y = (points[..., 1] + row.astype(points.dtype)) / self.rows
        return self.points_to_original(xp.stack([x, y], axis=-1))

    def tile_boxes(self) -> np.ndarray:
        """float64 [rows * columns, 4]: what each tile shows, in [0, 1] of the original."""
        row, column = np.divmod(np.arange(self.rows * self.columns), self.columns)
        grid = np.array([self.columns, self.rows] * 2, np.float64)
        return self.to_original(np.stack([column, row, column + 1, row + 1], axis=-1) / grid)

    def _forward(self):
        sides, views = (self.width, self.height), (self.view_width, self.view_height)
        gain = tuple(s * n / v for s, n, v in zip(self.scale, sides, views, strict=True))
        return gain, tuple(o / v for o, v in zip(self.offset, views, strict=True))

    def _backward(self):
        gain, shift = self._forward()
        return tuple(1 / g for g in gain), tuple(-s / g for g, s in zip(gain, shift, strict=True))


def _map(values, gain, shift):
    """Points [..., 2] or boxes [..., 4] times `gain` plus `shift`, per axis; boxes stay ordered."""
    xp, values = _arrays(values)
    if values.shape[-1] not in (2, 4):
        raise ValueError(f"shape {values.shape}: the last axis holds a point (2) or a box (4)")
    source = values.astype(np.float64) if xp is np else values
    out = [source[..., i] * gain[i % 2] + shift[i % 2] for i in range(values.shape[-1])]
    if len(out) == 4:
        x1, y1, x2, y2 = out
        x1, x2 = (x2, x1) if gain[0] < 0 else (x1, x2)
        out = [x1, y1, x2, y2]
    return xp.stack(out, axis=-1).astype(values.dtype)


def _check_whole(name: str, value: Any) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise UserError(f"BoxSpace: {name}={value!r}; give a whole number from 1 up")


def _margins(horizontal: int, vertical: int, align: str) -> tuple[int, int]:
    """Padding before the image, of the whole padding along each axis."""
    if align == "centre":
        return horizontal // 2, vertical // 2
    if align == "top_left":
        return 0, 0
    raise UserError(f"BoxSpace: align={align!r}; use 'centre' or 'top_left'")

"""Regions as pixels of the original picture, and the points that stand for them (Ferret spec 3, 4).

Upstream's masks are indexed [x, y]; so is what is recorded of them, and so `Patch.whole`.

    box       every pixel between its corners, both included
    point     11x11 pixels around it, fewer at the border
    scribble  the same along the whole stroke
    polygon   filled as pycocotools does: by the even-odd rule where its edges cross
    mask      as it is, within its box

A polygon or a mask that marks no pixel counts as its box.
"""

from dataclasses import dataclass, replace

import numpy as np

from mg_jax.data.sources.outlines import outline
from mg_jax.errors import UserError
from mg_jax.example import Region
from mg_jax.rle import decode_rle
from mg_jax.text.codecs.ferret_places import coordinates

POINTS = 512
_SPAN = 5  # pixels on each side of a point
_DRAWN = 1000  # pixels of a mask that a point is chosen from
_SPREAD = 0.15  # of a point in a box: its standard deviation over the box's side


@dataclass(frozen=True)
class Patch:
    """The pixels of a region in a picture of width x height pixels.

    inside: bool [rows, columns] of the window whose first pixel is (left, top); some are set.
    """

    width: int
    height: int
    left: int
    top: int
    inside: np.ndarray

    def whole(self) -> np.ndarray:
        """Bool [width, height]: the mask of the whole picture, x first."""
        out = np.zeros((self.width, self.height), bool)
        rows, columns = self.inside.shape
        out[self.left : self.left + columns, self.top : self.top + rows] = self.inside.T
        return out


def rasterise(region: Region, width: int, height: int) -> Patch:
    """The pixels of a region. Raises UserError for a mask of another picture's size."""
    if region.kind == "point":
        return _point(region, width, height)
    if region.kind == "scribble" or (region.kind == "polygon" and len(region.points) < 3):
        track = np.array(region.points) * [width, height]
        return _stroke(np.minimum(track, [width - 1, height - 1]), width, height)
    x0, y0, x1, y1 = (int(v) for v in coordinates(region, width, height))
    everywhere = Patch(width, height, x0, y0, np.ones((y1 - y0 + 1, x1 - x0 + 1), bool))
    if region.kind == "box":
        return everywhere
    filled = _filled(region, width, height)
    if filled is not None:
        inside = filled[y0 : y1 + 1, x0 : x1 + 1]
        if inside.any():
            return Patch(width, height, x0, y0, inside)
    return everywhere


def as_point(region: Region, width: int, height: int, rng: np.random.Generator) -> Region:
    """A point of a box or a mask, as upstream draws them in training.

    Of up to 1,000 drawn pixels of the mask the one nearest to the middle of the box; in a box
    without mask a normal draw around its middle. The point keeps box and mask, which cut its
    window. Raises UserError for a mask of another picture's size.
    """
    x0, y0, x1, y1 = coordinates(replace(region, kind="box"), width, height)
    filled = None if region.mask is None else _filled(region, width, height)
    if filled is not None and filled.any():
        places = np.flatnonzero(filled)
        y, x = np.divmod(rng.permutation(places)[:_DRAWN], width)
        far = (x - int((x0 + x1) / 2)) ** 2 + (y - int((y0 + y1) / 2)) ** 2
        nearest = len(far) - 1 - int(far[::-1].argmin())  # of equals the last
        at: tuple[float, float] = (float(x[nearest]), float(y[nearest]))
    else:
        while True:
            at = (rng.normal((x0 + x1) / 2, _SPREAD * (x1 - x0)),
                  rng.normal((y0 + y1) / 2, _SPREAD * (y1 - y0)))  # fmt: skip
            if x0 <= at[0] <= x1 and y0 <= at[1] <= y1:
                break
    return replace(region, kind="point", points=((at[0] / width, at[1] / height),))


def _point(region: Region, width: int, height: int) -> Patch:
    """The window of a point, within the box and mask that it was drawn from, if there are any."""
    x, y = coordinates(region, width, height)
    window = _stroke(np.array([[x, y]]), width, height)
    if region.box == Region.from_point(*region.points[0]).box:
        return window
    if (filled := _filled(region, width, height) if region.mask is not None else None) is None:
        filled = rasterise(replace(region, kind="box"), width, height).whole().T
    rows, columns = window.inside.shape
    part = filled[window.top : window.top + rows, window.left : window.left + columns]
    part = part & window.inside
    return replace(window, inside=part) if part.any() else window


def _filled(region: Region, width: int, height: int) -> np.ndarray | None:
    """Bool [height, width] of a polygon or a mask, None of a polygon without pixels."""
    if region.mask is None:
        polygon = [v for x, y in region.points for v in (x * width, y * height)]
        rle = outline([polygon], width, height)
        return None if rle is None else decode_rle(rle)
    mask = decode_rle(region.mask)
    if mask.shape != (height, width):
        rows, columns = mask.shape
        raise UserError(
            f"mask of {columns}x{rows} pixels, but the picture is {width}x{height}: give a mask of "
            "the whole picture"
        )
    return mask


def _stroke(track: np.ndarray, width: int, height: int) -> Patch:
    """The windows of a point along a track [n, 2] in pixels; between its points a step is at most
    one pixel long on either axis."""
    ends = np.concatenate([track[:1], track])
    steps = np.ceil(np.abs(np.diff(ends, axis=0)).max(1)).astype(int)
    path = np.concatenate(
        [a + (b - a) * np.arange(1, n + 1)[:, None] / n
         for a, b, n in zip(ends[:-1], ends[1:], np.maximum(steps, 1), strict=True)]
    )  # fmt: skip
    low = np.maximum(path - _SPAN, 0).astype(int)
    high = np.minimum(path + _SPAN + 1, [width, height]).astype(int)
    left, top = low.min(0)
    columns, rows = high.max(0) - [left, top]
    changes = np.zeros((rows + 1, columns + 1), np.int32)
    low, high = low - [left, top], high - [left, top]
    for x, y, sign in (
        (low[:, 0], low[:, 1], 1),
        (high[:, 0], high[:, 1], 1),
        (low[:, 0], high[:, 1], -1),
        (high[:, 0], low[:, 1], -1),
    ):
        np.add.at(changes, (y, x), sign)
    inside = changes.cumsum(0).cumsum(1)[:-1, :-1] > 0
    return Patch(width, height, int(left), int(top), inside)


def sample(patch: Patch, rng: np.random.Generator, count: int = POINTS) -> tuple[np.ndarray, int]:
    """(points [count, 2] float32, how many of the first are distinct) of a region's pixels.

    A point is a pixel's index (x, y) over (width, height). A region of more than `count` pixels
    gives a draw without replacement, a smaller one all of its pixels and then repeats of them, all
    in random order.
    """
    whole = patch.inside.all()  # boxes may be as large as the picture
    places = None if whole else np.flatnonzero(patch.inside)
    total = patch.inside.size if places is None else len(places)
    drawn = _draw(total, count, rng)
    y, x = np.divmod(drawn if places is None else places[drawn], patch.inside.shape[1])
    pixels = np.stack([x + patch.left, y + patch.top], 1).astype(np.float32)
    return pixels / np.array([patch.width, patch.height], np.float32), min(total, count)


def _draw(total: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the numbers below `total`, the first of them distinct."""
    first = rng.choice(total, min(total, count), replace=False)
    return np.append(first, rng.choice(total, count - len(first)))

"""Outlines of things as the data sets in COCO's form have them, as run-length encodings.

"segmentation": [[x0, y0, x1, y1, ...], ...]                 polygons, pixels, not closed
                {"size": [height, width], "counts": ...}     runs, of crowds above all
"""

from typing import Any

import numpy as np

from mg_jax.data.sources.base import real
from mg_jax.errors import BadRecord, UserError
from mg_jax.rle import rle_runs

_SCALE = 5.0  # steps a pixel in which COCO follows an edge
_FAR = 1e5  # pixels; an edge takes memory by its length


def check_outline(value: Any, where: str = "segmentation") -> bool:
    """Whether there is an outline at all: polygons with fewer than three vertices are none.

    Raises BadRecord for what is neither a list of polygons nor runs.
    """
    if value is None:
        return False
    if isinstance(value, dict):
        if not {"size", "counts"} <= value.keys():
            raise BadRecord(f'{where} is no {{"size": [height, width], "counts": ...}}')
        return True
    if not isinstance(value, list) or not all(
        isinstance(p, list) and len(p) % 2 == 0 and all(isinstance(v, int | float) for v in p)
        for p in value
    ):
        raise BadRecord(f"{where} {str(value)[:60]} is no list of polygons [x, y, x, y, ...]")
    return any(len(polygon) >= 6 for polygon in value)


def outline(value: Any, width: int, height: int) -> dict[str, Any] | None:
    """The run-length encoding of a segmentation in a picture of width x height pixels, polygons
    filled and joined as pycocotools does.

    None where it marks no pixel. Raises BadRecord for what is no outline of such a picture.
    """
    if not check_outline(value):
        return None
    if isinstance(value, dict):
        try:
            rows, columns, runs = rle_runs(value)
        except UserError as e:
            raise BadRecord(f"segmentation: {e}") from None
        if (rows, columns) != (height, width):
            raise BadRecord(f"segmentation of size {value['size']} is of another picture")
        return value if runs[1::2].any() else None
    sides = [
        _changes(np.array([real(v, "segmentation") for v in polygon]), width, height)
        for polygon in value
        if len(polygon) >= 6
    ]
    places = np.concatenate(sides)
    signs = np.concatenate([1 - 2 * (np.arange(len(own)) % 2) for own in sides])
    at, which = np.unique(places, return_inverse=True)
    inside = np.cumsum(np.bincount(which, signs, len(at))) > 0  # any polygon
    changes = at[inside != np.append(False, inside[:-1])]
    if not len(changes):
        return None
    counts = np.diff(np.concatenate([[0], changes, [width * height]]))
    return {"size": [height, width], "counts": counts.tolist()}


def _changes(polygon: np.ndarray, width: int, height: int) -> np.ndarray:
    """Where a polygon x, y, x, y, ... in pixels begins and ends, in turn, among the pixels counted
    down the columns; ascending.

    As rleFrPoly of pycocotools (maskApi.c): the edges are followed in steps of a fifth of a pixel;
    where they pass the middle of a column, the pixels below change sides. Raises BadRecord for
    numbers that are none of a picture.
    """
    if not (abs(polygon) < _FAR).all():
        raise BadRecord(f"segmentation reaches to {abs(polygon).max():g} pixels")
    corners = np.trunc(_SCALE * polygon + 0.5).astype(np.int64).reshape(-1, 2).tolist()
    ends = [*corners[1:], corners[0]]
    x, y = np.concatenate([_edge(*a, *b) for a, b in zip(corners, ends, strict=True)], 1)
    at = np.flatnonzero(x[1:] != x[:-1])
    column = (np.minimum(x[at], x[at + 1]) + 0.5) / _SCALE - 0.5
    row = (np.minimum(y[at], y[at + 1]) + 0.5) / _SCALE - 0.5
    inside = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    row = np.ceil(np.clip(row[inside], 0, height)).astype(np.int64)
    places, times = np.unique(column[inside].astype(np.int64) * height + row, return_counts=True)
    return places[(times % 2 == 1) & (places < width * height)]


def _edge(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """The steps of an edge, [2, steps]: a step along the longer axis each, both ends included."""
    dx, dy = abs(x1 - x0), abs(y1 - y0)
    if not dx and not dy:
        return np.array([[x0], [y0]])
    back = (dx >= dy and x0 > x1) or (dx < dy and y0 > y1)
    if back:  # rounding depends on the direction, so both go the same way
        x0, y0, x1, y1 = x1, y1, x0, y0
    steps = np.arange(max(dx, dy) + 1)[:: -1 if back else 1]
    if dx >= dy:
        path = x0 + steps, np.trunc(y0 + (y1 - y0) / dx * steps + 0.5).astype(np.int64)
    else:
        path = np.trunc(x0 + (x1 - x0) / dy * steps + 0.5).astype(np.int64), y0 + steps
    return np.stack(path)

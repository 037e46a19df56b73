"""Regions as a command line gives them: text, in the picture's own pixels."""

from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.boxes import check_boxes
from mg_jax.disk import read_json
from mg_jax.errors import UserError
from mg_jax.example import Region
from mg_jax.rle import rle_runs
from mg_jax.vision.preprocess import load_image

KINDS = (
    "box",
    "point",
    "polygon",
    "scribble",
    "mask",
    "object",
)  # in the order in which regions are numbered
_COUNT = {"box": 4, "object": 4, "point": 2}


def parse(kind: str, text: str, width: int, height: int) -> Region:
    """A region of a width x height picture.

    text: x1,y1,x2,y2 of a "box" or an "object", which is shown to the model as an image; x,y of a
    "point"; x,y,x,y,... of a "polygon" or a "scribble"; for a "mask" a picture file of the same
    size, non-zero where the region is, or a .json file that holds a COCO RLE of it, {"size":
    [height, width], "counts": ...}. Raises UserError beginning with the text when it is malformed
    or leaves the picture.
    """
    try:
        if kind == "mask":
            return _mask(text, width, height)
        return _drawn(kind, text, width, height)
    except UserError as e:
        line = str(e)
        raise UserError(line if line.startswith(f"{text}: ") else f"{text}: {line}") from e


def _mask(text: str, width: int, height: int) -> Region:
    if text.lower().endswith(".json"):
        mask: Any = read_json(Path(text))
        rows, columns, _ = rle_runs(mask)
    else:
        mask = load_image(text).any(-1)
        rows, columns = mask.shape
    if (rows, columns) != (height, width):
        raise UserError(f"{columns}x{rows}, but the picture is {width}x{height}")
    return Region.from_mask(mask)


def _drawn(kind: str, text: str, width: int, height: int) -> Region:
    values = _numbers(text, _COUNT.get(kind))
    points = np.reshape(values, (-1, 2))
    shares = (points / (width, height)).tolist()
    if kind in ("box", "object"):
        check_boxes(values, width, height)
        return Region.from_box((*shares[0], *shares[1]))
    for x, y in points:
        if not (0 <= x <= width and 0 <= y <= height):
            raise UserError(f"({x:g}, {y:g}) is outside the {width}x{height} picture")
    if kind == "point":
        return Region.from_point(*shares[0])
    return (Region.from_scribble if kind == "scribble" else Region.from_polygon)(shares)


def _numbers(text: str, count: int | None) -> list[float]:
    try:
        values = [float(v) for v in text.split(",")]
    except ValueError:
        values = []
    if not values or (count and len(values) != count) or len(values) % 2:
        shape = f"{count} numbers" if count else "an even count of numbers"
        raise UserError(f"expected {shape} separated by commas, in pixels")
    return values

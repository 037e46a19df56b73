"""Places in Ferret's text: whole numbers of a picture of 1000x1000 (spec 2).

    [x, y]               a point
    [x1, y1, x2, y2]     a box, or the box of any other region

Written as published: pixels of the original picture, at most the last pixel of an axis, times 1000
over the side, cut to a whole number; so they end at 999. Read without the second cut, by which
upstream's evaluators turn them into whole pixels.
"""

import re
from collections.abc import Sequence

from mg_jax.example import Region

BINS = 1000
_EXACT = 1e-3  # pixels: as near as this to a whole number a coordinate is that number
_WHOLE = re.compile(r"[+-]?\d+")

OUTSIDE = "box outside the picture"
REVERSED = "reversed box"
NOT_FOUR = "box that is not four whole numbers"
ENDLESS = "box without end"


def coordinates(region: Region, width: int, height: int) -> tuple[float, ...]:
    """(x, y) of a point, (x1, y1, x2, y2) of every other region, in pixels, each at most the last
    pixel of its axis."""
    given = region.points[0] if region.kind == "point" else region.box
    return tuple(_pixel(v, (width, height)[n % 2]) for n, v in enumerate(given))


def _pixel(share: float, side: int) -> float:
    value = share * side
    whole = round(value)
    value = float(whole) if abs(value - whole) < _EXACT else value
    return max(0.0, min(value, side - 1.0))


def format_place(values: Sequence[float], width: int, height: int) -> str:
    """`[156, 104, 625, 625]` of pixels x, y, ... in a picture of width x height."""
    ratio = BINS * 1.0 / width, BINS * 1.0 / height
    return "[" + ", ".join(str(int(v * ratio[n % 2])) for n, v in enumerate(values)) + "]"


def parse_box(text: str) -> tuple[float, ...] | str:
    """The corners xyxy in [0, 1] that a bracketed text names, or what is wrong with it; a side
    without length has that of one step."""
    if not text.endswith("]"):
        return ENDLESS
    inner = [part.strip() for part in text[1:-1].split(",")]
    if len(inner) != 4 or not all(_WHOLE.fullmatch(part) for part in inner):
        return NOT_FOUR
    x1, y1, x2, y2 = (int(part[:9]) for part in inner)  # thousands of digits are outside as well
    if not all(0 <= v <= BINS for v in (x1, y1, x2, y2)):
        return OUTSIDE
    if x2 < x1 or y2 < y1:
        return REVERSED
    (x1, x2), (y1, y2) = _side(x1, x2), _side(y1, y2)
    return x1 / BINS, y1 / BINS, x2 / BINS, y2 / BINS


def _side(first: int, last: int) -> tuple[int, int]:
    """Both ends of a side, one step apart where they are equal."""
    if first == last:
        first = min(first, BINS - 1)
        last = first + 1
    return first, last

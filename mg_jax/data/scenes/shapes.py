"""The shapes of the procedural scenes: filled outlines in a unit box, and their rendered stamps.

A shape is a list of strokes drawn one after the other. `+` adds to the silhouette, `-` cuts a
hole, `.` darkens a detail inside it. Coordinates are x right, y down, in [0, 1] of the shape's own
box, whose height is `aspect` times its width.
"""

import functools
import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

ANGLES = (-14, -7, 0, 7, 14)  # degrees; small enough that no shape turns into another one
_SIDE = 384  # drawn this large, reduced when a stamp is made
_RIM = 9  # width of the outline there
_HALF = 192  # the size kept per shape and angle
_EDGE, _DETAIL = 0.62, 0.55  # brightness of the outline and of details, relative to the fill


def _star(points: int, inner: float, turn: float = -90.0) -> list[tuple[float, float]]:
    out = []
    for i in range(2 * points):
        r = 0.5 if i % 2 == 0 else 0.5 * inner
        a = math.radians(turn + 180.0 * i / points)
        out.append((0.5 + r * math.cos(a), 0.5 + r * math.sin(a)))
    return out


def _heart() -> list[tuple[float, float]]:
    out = []
    for i in range(60):
        t = 2 * math.pi * i / 60
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        out.append((0.5 + x / 33, 0.45 - y / 30))
    return out


def _ellipse(x0: float, y0: float, x1: float, y1: float) -> tuple:
    return ("ellipse", (x0, y0, x1, y1))


def _box(x0: float, y0: float, x1: float, y1: float) -> tuple:
    return ("poly", ((x0, y0), (x1, y0), (x1, y1), (x0, y1)))


def _poly(*points: tuple[float, float]) -> tuple:
    return ("poly", points)


_PETALS = [
    ("+", _ellipse(0.5 + 0.27 * c - 0.21, 0.5 + 0.27 * s - 0.21,
                   0.5 + 0.27 * c + 0.21, 0.5 + 0.27 * s + 0.21))
    for a in range(-90, 270, 72)
    for c, s in [(math.cos(math.radians(a)), math.sin(math.radians(a)))]
]  # fmt: skip

# name: (aspect = height / width, strokes)
SHAPES: dict[str, tuple[float, list[tuple[str, tuple]]]] = {
    "circle": (1.0, [("+", _ellipse(0, 0, 1, 1))]),
    "square": (1.0, [("+", _box(0, 0, 1, 1))]),
    "triangle": (0.9, [("+", _poly((0.5, 0), (1, 1), (0, 1)))]),
    "star": (1.0, [("+", _poly(*_star(5, 0.42)))]),
    "heart": (0.95, [("+", _poly(*_heart()))]),
    "cross": (1.0, [("+", _box(0.33, 0, 0.67, 1)), ("+", _box(0, 0.33, 1, 0.67))]),
    "ring": (1.0, [("+", _ellipse(0, 0, 1, 1)), ("-", _ellipse(0.27, 0.27, 0.73, 0.73))]),
    "diamond": (1.5, [("+", _poly((0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)))]),
    "moon": (1.25, [("+", _ellipse(0, 0, 1.25, 1)), ("-", _ellipse(0.42, 0.04, 1.5, 0.9))]),
    "arrow": (0.62, [
        ("+", _box(0, 0.32, 0.6, 0.68)),
        ("+", _poly((0.52, 0), (1, 0.5), (0.52, 1))),
    ]),
    "house": (1.0, [
        ("+", _poly((0.5, 0), (1, 0.42), (0, 0.42))),
        ("+", _box(0.1, 0.4, 0.9, 1)),
        (".", _box(0.4, 0.62, 0.62, 1)),
        (".", _box(0.04, 0.39, 0.96, 0.43)),
    ]),
    "tree": (1.4, [
        ("+", _poly((0.5, 0), (0.84, 0.36), (0.16, 0.36))),
        ("+", _poly((0.5, 0.16), (0.93, 0.6), (0.07, 0.6))),
        ("+", _poly((0.5, 0.36), (1, 0.84), (0, 0.84))),
        ("+", _box(0.4, 0.8, 0.6, 1)),
        (".", _box(0.4, 0.84, 0.6, 1)),
    ]),
    "fish": (0.6, [
        ("+", _ellipse(0, 0.08, 0.76, 0.92)),
        ("+", _poly((0.62, 0.5), (1, 0), (0.9, 0.5), (1, 1))),
        (".", _ellipse(0.13, 0.32, 0.22, 0.48)),
    ]),
    "cup": (0.9, [
        ("+", _poly((0, 0), (0.72, 0), (0.64, 1), (0.08, 1))),
        ("+", _ellipse(0.5, 0.16, 1, 0.7)),
        ("-", _ellipse(0.66, 0.29, 0.88, 0.57)),
        ("+", _poly((0, 0), (0.72, 0), (0.64, 1), (0.08, 1))),
        (".", _box(0.02, 0.06, 0.7, 0.11)),
    ]),
    "key": (0.48, [
        ("+", _ellipse(0, 0, 0.48, 1)),
        ("-", _ellipse(0.13, 0.27, 0.35, 0.73)),
        ("+", _box(0.44, 0.39, 1, 0.61)),
        ("+", _box(0.72, 0.5, 0.8, 0.92)),
        ("+", _box(0.9, 0.5, 1, 0.92)),
    ]),
    "bottle": (2.4, [
        ("+", _box(0.32, 0, 0.68, 0.3)),
        ("+", _poly((0.32, 0.22), (0.68, 0.22), (1, 0.42), (1, 1), (0, 1), (0, 0.42))),
        (".", _box(0.32, 0.07, 0.68, 0.11)),
        (".", _box(0, 0.58, 1, 0.61)),
        (".", _box(0, 0.83, 1, 0.86)),
    ]),
    "flower": (1.0, [*_PETALS, ("+", _ellipse(0.3, 0.3, 0.7, 0.7)),
                     (".", _ellipse(0.36, 0.36, 0.64, 0.64))]),
    "mushroom": (0.95, [
        ("+", _ellipse(0, 0, 1, 1.1)),
        ("-", _box(-0.1, 0.55, 1.1, 1.2)),
        ("+", _poly((0.36, 0.5), (0.64, 0.5), (0.7, 1), (0.3, 1))),
        (".", _box(0.02, 0.52, 0.98, 0.57)),
    ]),
    "umbrella": (1.05, [
        ("+", _ellipse(0, 0.06, 1, 1)),
        ("-", _box(-0.1, 0.5, 1.1, 1.1)),
        ("-", _ellipse(0.0, 0.43, 0.33, 0.6)),
        ("-", _ellipse(0.335, 0.43, 0.665, 0.6)),
        ("-", _ellipse(0.67, 0.43, 1, 0.6)),
        ("+", _box(0.46, 0, 0.54, 0.93)),
        ("+", _box(0.46, 0.9, 0.76, 1)),
        ("+", _box(0.68, 0.8, 0.76, 1)),
    ]),
    "boat": (0.95, [
        ("+", _poly((0, 0.68), (1, 0.68), (0.8, 1), (0.18, 1))),
        ("+", _box(0.46, 0.02, 0.53, 0.7)),
        ("+", _poly((0.56, 0), (0.56, 0.6), (0.98, 0.6))),
        ("+", _poly((0.43, 0.16), (0.43, 0.6), (0.1, 0.6))),
    ]),
    "car": (0.52, [
        ("+", _box(0, 0.42, 1, 0.82)),
        ("+", _poly((0.2, 0.46), (0.32, 0), (0.68, 0), (0.84, 0.46))),
        ("+", _ellipse(0.12, 0.6, 0.34, 1)),
        ("+", _ellipse(0.66, 0.6, 0.88, 1)),
        (".", _poly((0.3, 0.4), (0.37, 0.1), (0.48, 0.1), (0.48, 0.4))),
        (".", _poly((0.54, 0.4), (0.54, 0.1), (0.64, 0.1), (0.74, 0.4))),
        (".", _ellipse(0.14, 0.64, 0.32, 0.98)),
        (".", _ellipse(0.68, 0.64, 0.86, 0.98)),
    ]),
    "bell": (1.05, [
        ("+", _ellipse(0.2, 0.08, 0.8, 0.7)),
        ("+", _poly((0.2, 0.36), (0.8, 0.36), (0.86, 0.68), (1, 0.82), (0, 0.82), (0.14, 0.68))),
        ("+", _ellipse(0.38, 0.74, 0.62, 1)),
        ("+", _ellipse(0.42, 0, 0.58, 0.16)),
        (".", _box(0.05, 0.77, 0.95, 0.82)),
    ]),
    "bolt": (1.5, [
        ("+", _poly((0.55, 0), (0, 0.56), (0.42, 0.56), (0.22, 1), (1, 0.38), (0.56, 0.38),
                    (0.95, 0))),
    ]),
    "cloud": (0.62, [
        ("+", _ellipse(0, 0.36, 0.42, 1)),
        ("+", _ellipse(0.18, 0, 0.66, 0.86)),
        ("+", _ellipse(0.5, 0.2, 0.86, 0.9)),
        ("+", _ellipse(0.62, 0.42, 1, 1)),
        ("+", _box(0.2, 0.6, 0.82, 1)),
    ]),
    "sign": (0.62, [("+", _box(0, 0, 1, 1)), (".", _box(0, 0, 1, 1)),
                    ("o", _box(0.035, 0.06, 0.965, 0.94))]),
}  # fmt: skip


@functools.cache
def _template(shape: str, angle: int, flip: bool) -> Image.Image:
    """RGB picture whose red channel is the silhouette and whose green channel is brightness."""
    aspect, strokes = SHAPES[shape]
    w, h = (_SIDE, round(_SIDE * aspect)) if aspect <= 1 else (round(_SIDE / aspect), _SIDE)
    alpha, shade = Image.new("L", (w, h)), Image.new("L", (w, h), 255)
    on_alpha, on_shade = ImageDraw.Draw(alpha), ImageDraw.Draw(shade)
    details = []
    for kind, (form, points) in strokes:
        if form == "ellipse":
            xy = (points[0] * w, points[1] * h, points[2] * w - 1, points[3] * h - 1)
        else:
            xy = [(x * w - (x == 1), y * h - (y == 1)) for x, y in points]
        if kind in "+-":
            getattr(on_alpha, "ellipse" if form == "ellipse" else "polygon")(
                xy, fill=255 if kind == "+" else 0
            )
        else:
            details.append((form, xy, 255 if kind == "o" else round(255 * _DETAIL)))
    # A box mean of full brightness is an erosion, and much quicker than a minimum filter.
    inside = alpha.filter(ImageFilter.BoxBlur(_RIM)).point(lambda v: 255 if v > 253 else 0)
    # What touches the border of the drawing has its edge there too.
    frame = Image.new("L", (w, h))
    ImageDraw.Draw(frame).rectangle((_RIM, _RIM, w - 1 - _RIM, h - 1 - _RIM), fill=255)
    inside = ImageChops.darker(inside, frame)
    shade = inside.point(lambda v: 255 if v > 127 else round(255 * _EDGE))
    on_shade = ImageDraw.Draw(shade)
    for form, xy, value in details:
        getattr(on_shade, "ellipse" if form == "ellipse" else "polygon")(xy, fill=value)
    image = Image.merge("RGB", (alpha, shade, Image.new("L", (w, h))))
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if angle:
        image = image.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    image = image.crop(image.getchannel(0).point(lambda v: 255 if v > 127 else 0).getbbox())
    scale = _HALF / max(image.size)
    return image.resize(
        (max(round(image.width * scale), 1), max(round(image.height * scale), 1)),
        Image.Resampling.BOX,
    )


@functools.lru_cache(maxsize=4096)
def stamp(shape: str, angle: int, flip: bool, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Antialiased silhouette and brightness, uint8 [h, w] each; the longer side has `side` pixels.

    shape: a key of SHAPES; angle: degrees counter-clockwise; flip: mirrored left to right.
    """
    image = _template(shape, angle, flip)
    scale = side / max(image.size)
    size = (max(round(image.width * scale), 2), max(round(image.height * scale), 2))
    array = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    alpha, shade = (np.ascontiguousarray(array[..., i]) for i in range(2))
    alpha.setflags(write=False)
    shade.setflags(write=False)
    return alpha, shade

"""Boxes and labels on a picture, readable at a glance at any size (Pillow alone)."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Eight colours that stay apart for the colour-blind too, in the order of first use
COLOURS = (
    (230, 57, 70), (0, 114, 178), (0, 158, 115), (240, 160, 0),
    (190, 60, 190), (86, 190, 240), (140, 86, 40), (250, 230, 60),
)  # fmt: skip
SMALLEST_SIDE = 512
_LABEL_LENGTH = 48

Rectangle = tuple[float, float, float, float]


def draw_boxes(
    image: "Image.Image | np.ndarray | str",
    boxes: Sequence[Sequence[float]],
    labels: Sequence[str],
    colours: Sequence[int],
    width: int = 0,
    height: int = 0,
) -> Image.Image:
    """The picture with one outlined box and label plate for each of `boxes`.

    boxes: xyxy in pixels of a width x height original (0: of the picture itself), scaled to the
    picture's size; box n has the colour number colours[n]. Plates avoid each other where there is
    room. Pictures under SMALLEST_SIDE px on the longer side are enlarged by a whole factor.
    """
    canvas = _open(image)
    scale_x = canvas.width / (width or canvas.width)
    scale_y = canvas.height / (height or canvas.height)
    factor = max(1, -(-SMALLEST_SIDE // max(canvas.size)))
    if factor > 1:
        canvas = canvas.resize(
            (canvas.width * factor, canvas.height * factor), Image.Resampling.LANCZOS
        )
    scaled = [
        (x0 * scale_x * factor, y0 * scale_y * factor, x1 * scale_x * factor, y1 * scale_y * factor)
        for x0, y0, x1, y1 in boxes
    ]
    pen = ImageDraw.Draw(canvas)
    line = max(4, round(max(canvas.size) / 180))
    font = ImageFont.load_default(size=max(15, round(max(canvas.size) / 36)))
    # Large boxes first, so that small ones stay visible on top
    order = sorted(range(len(scaled)), key=lambda n: -_area(scaled[n]))
    for n in order:
        _outline(pen, scaled[n], COLOURS[colours[n] % len(COLOURS)], line, canvas.size)
    plates: list[Rectangle] = []
    for n in reversed(order):
        if labels[n]:
            plate = _place(pen, labels[n], scaled[n], font, line, canvas.size, plates, scaled)
            plates.append(plate[1])
            _write(pen, *plate, COLOURS[colours[n] % len(COLOURS)], font, line)
    return canvas


def heat(image: "Image.Image | np.ndarray | str", values: np.ndarray) -> Image.Image:
    """The picture under a map of values, dark where they are low, yellow where they are highest.

    values: float [H, W] of the picture's size, 0 and more. Pictures are enlarged as by
    `draw_boxes`.
    """
    canvas = _open(image)
    factor = max(1, -(-SMALLEST_SIDE // max(canvas.size)))
    canvas = canvas.resize((canvas.width * factor, canvas.height * factor))
    share = values / max(float(values.max()), 1e-12)
    level = Image.fromarray(np.uint8(np.rint(255 * share))).resize(
        canvas.size, Image.Resampling.BILINEAR
    )
    v = np.asarray(level, np.float64)[..., None] / 255
    colour = np.concatenate([np.clip(2 * v, 0, 1), np.clip(2 * v - 0.6, 0, 1), 0.2 * (1 - v)], -1)
    mixed = np.asarray(canvas) * 0.45 + 255 * colour * 0.55
    return Image.fromarray(np.uint8(np.rint(mixed)))


def titled(picture: Image.Image, text: str) -> Image.Image:
    """The picture under a line of text on white."""
    size = max(15, round(max(picture.size) / 30))
    out = Image.new("RGB", (picture.width, picture.height + 2 * size), "white")
    out.paste(picture, (0, 2 * size))
    font = ImageFont.load_default(size=size)
    ImageDraw.Draw(out).text((size // 2, size // 3), text, fill="black", font=font)
    return out


def grid(pictures: Sequence[Image.Image], columns: int = 4, cell: int = 360) -> Image.Image:
    """The pictures side by side in rows, each made to fit a square of `cell` px on white."""
    rows = max(1, -(-len(pictures) // columns))
    sheet = Image.new("RGB", (columns * cell, rows * cell), "white")
    for n, picture in enumerate(pictures):
        small = picture.copy()
        small.thumbnail((cell - 8, cell - 8), Image.Resampling.LANCZOS)
        row, column = divmod(n, columns)
        left, top = (cell - small.width) // 2, (cell - small.height) // 2
        sheet.paste(small, (column * cell + left, row * cell + top))
    return sheet


def _open(image: "Image.Image | np.ndarray | str") -> Image.Image:
    if isinstance(image, np.ndarray):
        return Image.fromarray(image).convert("RGB")
    from mg_jax.vision.preprocess import from_pil, load_image

    pixels = from_pil(image) if isinstance(image, Image.Image) else load_image(image)
    return Image.fromarray(pixels)


def _area(r: Sequence[float]) -> float:
    return max(r[2] - r[0], 0) * max(r[3] - r[1], 0)


def _shared(a: Sequence[float], b: Sequence[float]) -> float:
    """Area common to two rectangles."""
    corners = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return _area(corners) if corners[2] > corners[0] and corners[3] > corners[1] else 0.0


def _outline(
    pen: ImageDraw.ImageDraw,
    box: Rectangle,
    colour: tuple[int, int, int],
    line: int,
    size: tuple[int, int],
) -> None:
    """A line of the colour between two thin ones, dark and light, so that it shows on anything."""
    x0, y0 = (max(0.0, min(v, s - 1)) for v, s in zip(box[:2], size, strict=True))
    x1, y1 = (max(0.0, min(v - 1, s - 1)) for v, s in zip(box[2:], size, strict=True))
    x1, y1 = max(x0, x1), max(y0, y1)
    edge = max(1, line // 3)
    for grow, paint, thick in ((edge, (20, 20, 20), line + 2 * edge), (0, colour, line)):
        pen.rectangle((x0 - grow, y0 - grow, x1 + grow, y1 + grow), outline=paint, width=thick)


def _place(
    pen: ImageDraw.ImageDraw,
    label: str,
    box: Rectangle,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    line: int,
    size: tuple[int, int],
    taken: Sequence[Rectangle],
    boxes: Sequence[Rectangle],
) -> tuple[str, Rectangle]:
    """The label, shortened to fit, and the plate that hides the least."""
    if len(label) > _LABEL_LENGTH:
        label = f"{label[: _LABEL_LENGTH - 10].rstrip()}... {label.split()[-1]}"
    pad = line + 1
    while pen.textlength(label, font) + 2 * pad > size[0] and len(label) > 6:
        words = label.rsplit(" ", 1)
        head, tail = words if len(words) == 2 else (label, "")
        label = f"{head.rstrip('.')[:-2].rstrip()}... {tail}".strip()
    wide = pen.textlength(label, font) + 2 * pad
    high = sum(font.getmetrics()) + pad if hasattr(font, "getmetrics") else 14 + pad
    x0, y0, x1, y1 = box
    lefts = (x0, x1 - wide, (x0 + x1 - wide) / 2, x1 + line, x0 - wide - line)
    tops = [y0 - high - line, y1 + line, y0, y1 - high]
    tops += [y0 + step * high * 1.1 for step in (-2, -3, 1, 2, 3, 4, 5)]

    def cost(plate: Rectangle) -> float:
        hidden = sum(_shared(plate, other) for other in taken)
        covered = sum(_shared(plate, other) / max(_area(other), 1.0) for other in boxes)
        distance = abs(plate[0] - x0) / wide + abs(plate[1] - tops[0]) / high
        return 50 * hidden / (wide * high) + 2 * covered + 0.5 * distance

    plates = []
    for left, top in product(lefts, tops):
        left = max(0.0, min(left, size[0] - wide))
        top = max(0.0, min(top, size[1] - high))
        plates.append((left, top, left + wide, top + high))
    return label, min(plates, key=cost)


def _write(
    pen: ImageDraw.ImageDraw,
    label: str,
    plate: Rectangle,
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    line: int,
) -> None:
    bright = np.dot(colour, (0.299, 0.587, 0.114)) > 140
    pen.rectangle(plate, fill=colour, outline=(20, 20, 20), width=max(1, line // 3))
    pen.text(
        (plate[0] + line + 1, plate[1] + (line + 1) / 2),
        label,
        fill=(0, 0, 0) if bright else (255, 255, 255),
        font=font,
    )

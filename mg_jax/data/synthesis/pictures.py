"""Pictures as an endpoint gets them: made smaller, with numbered marks where asked for."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mg_jax.draw import COLOURS
from mg_jax.example import Box

_QUALITY = 90
# Where a mark goes that would hide another one at the centre: shares of the box from its corner
_PLACES = ((0.5, 0.5), (0.5, 0.25), (0.5, 0.75), (0.25, 0.5), (0.75, 0.5), (0.25, 0.25),
           (0.75, 0.75), (0.25, 0.75), (0.75, 0.25))  # fmt: skip


def data_url(picture: np.ndarray | Image.Image) -> str:
    """A picture, uint8 RGB [H, W, 3], as the text of a JPEG that a message can hold."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def smaller(pixels: np.ndarray, side: int) -> Image.Image:
    """The picture with a longer side of at most `side` pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def with_marks(pixels: np.ndarray, boxes: Sequence[Box], side: int) -> Image.Image:
    """The smaller picture with 1, 2, 3, ... on plates at the centres of the boxes (xyxy in [0, 1]).

    A mark that would touch an earlier one moves within its box, where there is room.
    """
    image = smaller(pixels, side)
    size = max(13, round(max(image.size) / 32))
    font = ImageFont.load_default(size=size)
    pen = ImageDraw.Draw(image)
    taken: list[tuple[float, float]] = []
    for n, (x0, y0, x1, y1) in enumerate(boxes):
        spots = [
            ((x0 + (x1 - x0) * u) * image.width, (y0 + (y1 - y0) * v) * image.height)
            for u, v in _PLACES
        ]
        room = [min((np.hypot(x - a, y - b) for a, b in taken), default=np.inf) for x, y in spots]
        far = [k for k, r in enumerate(room) if r > 1.5 * size]
        x, y = spots[far[0] if far else int(np.argmax(room))]
        taken.append((x, y))
        colour = COLOURS[n % len(COLOURS)]
        text = str(n + 1)
        half = (pen.textlength(text, font) / 2 + size * 0.25, size * 0.62)
        plate = (x - half[0], y - half[1], x + half[0], y + half[1])
        pen.rounded_rectangle(plate, size * 0.3, fill=colour, outline=(20, 20, 20), width=2)
        bright = np.dot(colour, (0.299, 0.587, 0.114)) > 140
        ink = (0, 0, 0) if bright else (255, 255, 255)
        pen.text((x, y), text, fill=ink, font=font, anchor="mm")
    return image

"""Pixels of a procedural scene: colours, textures, printed words, backgrounds, compositing."""

import functools
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mg_jax.data.scenes.shapes import stamp

# The fill of each colour name; jitter stays well inside the name (tests classify every draw).
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (216, 30, 34),
    "orange": (246, 138, 22),
    "yellow": (248, 224, 44),
    "green": (38, 158, 62),
    "blue": (32, 84, 216),
    "purple": (132, 52, 182),
    "pink": (250, 148, 196),
    "brown": (122, 74, 36),
    "black": (26, 26, 28),
    "white": (247, 247, 245),
}
COLOR_JITTER = 12  # most that one channel moves
TEXTURES = ("plain", "striped", "dotted", "checked")
# Share of a textured fill that shows the name's own colour; the rest is a lighter or darker one.
_SECOND: dict[str, tuple[int, int, int]] = {
    "red": (250, 205, 205),
    "orange": (112, 62, 10),
    "yellow": (132, 116, 14),
    "green": (205, 240, 210),
    "blue": (200, 214, 252),
    "purple": (226, 204, 240),
    "pink": (142, 62, 100),
    "brown": (226, 206, 186),
    "black": (168, 168, 170),
    "white": (112, 112, 114),
}
_TILE = 512
BACKGROUNDS = ("plain", "gradient", "noise", "texture")


def jitter_color(name: str, rng: random.Random) -> tuple[int, int, int]:
    """A fill near the colour's prototype, uint8 RGB."""
    r, g, b = COLORS[name]
    j = COLOR_JITTER
    shift = rng.uniform(-j / 2, j / 2)

    def near(value: int) -> int:
        return min(max(round(value + shift + rng.uniform(-j / 2, j / 2)), 0), 255)

    return near(r), near(g), near(b)


def color_name(rgb: np.ndarray) -> str:
    """The colour name whose prototype is nearest to an RGB triple."""
    names = list(COLORS)
    distance = [float(((np.asarray(rgb, float) - COLORS[n]) ** 2).sum()) for n in names]
    return names[int(np.argmin(distance))]


@functools.lru_cache(maxsize=256)
def _pattern(texture: str, cell: int, variant: int, side: int) -> np.ndarray:
    """Bool [side, side]: where the second colour shows (about a third of the area)."""
    y, x = np.mgrid[:side, :side]
    if texture == "striped":
        along = (x, y, (x + y) * 0.7071, (x - y) * 0.7071)[variant]
        out = np.mod(along, cell) < 0.36 * cell
    elif texture == "dotted":
        row = np.floor_divide(y, cell)
        dx = np.mod(x + (row % 2) * (cell // 2), cell) - cell / 2 + 0.5
        dy = np.mod(y, cell) - cell / 2 + 0.5
        out = dx * dx + dy * dy < (0.31 * cell) ** 2
    else:  # checked: squares a little smaller than half a cell on both diagonals
        half, edge = cell / 2, 0.42 * cell
        a = (np.mod(x, cell) < edge) & (np.mod(y, cell) < edge)
        b = (np.mod(x + half, cell) < edge) & (np.mod(y + half, cell) < edge)
        out = a | b
    out.setflags(write=False)
    return out


@functools.lru_cache(maxsize=256)
def _font(pixels: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.load_default(size=pixels)
    except (TypeError, OSError):  # Pillow without FreeType has one bitmap font
        return ImageFont.load_default()


@functools.lru_cache(maxsize=4096)
def word_stamp(word: str, width: int, height: int) -> np.ndarray | None:
    """Antialiased word as uint8 [h, w], the largest that fits the box in pixels.

    None where it would be lower than 6 pixels, which nobody could read.
    """
    left, top, right, bottom = map(int, _font(64).getbbox(word, stroke_width=2))
    scale = min(width / (right - left), height / (bottom - top))
    size = (max(int((right - left) * scale), 1), max(int((bottom - top) * scale), 1))
    if size[1] < 6:
        return None
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), word, fill=255, font=_font(64), stroke_width=2)
    array = np.asarray(image.resize(size, Image.Resampling.BOX))
    array.setflags(write=False)
    return array


@functools.lru_cache(maxsize=1)
def _noise() -> np.ndarray:
    """int16 [_TILE, _TILE, 3] grain of standard deviation 6, the same in every process."""
    rng = np.random.Generator(np.random.PCG64(20_240_401))
    grain = rng.normal(0, 1, (_TILE, _TILE, 1)) * 5 + rng.normal(0, 1, (_TILE, _TILE, 3)) * 3
    return np.round(grain).astype(np.int16)


@functools.lru_cache(maxsize=8)
def _texture(kind: int) -> np.ndarray:
    """int16 [_TILE, _TILE, 1] faint large pattern: planks, blobs, cloth or waves, within +-14."""
    y, x = np.mgrid[:_TILE, :_TILE].astype(np.float32)
    if kind == 0:
        out = np.where(np.mod(y, 32) < 2, -14, 3 * np.sin(y / 5 + np.floor(y / 32)))
    elif kind == 1:
        rng = np.random.Generator(np.random.PCG64(20_240_402))
        small = Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8))
        out = np.asarray(small.resize((_TILE, _TILE), Image.Resampling.BICUBIC), np.float32)
        out = (out - 128) * 0.09
    elif kind == 2:
        out = 5 * np.sign(np.sin(x * 0.8)) * np.sign(np.sin(y * 0.8))
    else:
        out = 9 * np.sin(y / 9 + 2 * np.sin(x / 23))
    return np.round(out).astype(np.int16)[..., None]


def background(
    kind: str, tint: tuple, other: tuple, variant: int, offset: tuple[int, int], w: int, h: int
) -> np.ndarray:
    """uint8 [h, w, 3] of one of BACKGROUNDS between two tints; offset shifts grain and pattern."""
    a, b = np.asarray(tint, np.float32), np.asarray(other, np.float32)
    if kind == "gradient":
        x, y = np.linspace(0, 1, w, dtype=np.float32), np.linspace(0, 1, h, dtype=np.float32)
        along = {0: x[None] + 0 * y[:, None], 1: y[:, None] + 0 * x[None]}.get(
            variant % 3, (x[None] + y[:, None]) / 2
        )
        return (a + along[..., None] * (b - a)).astype(np.uint8)
    out = np.empty((h, w, 3), np.int16)
    out[:] = a.astype(np.int16)
    if kind == "plain":
        return out.astype(np.uint8)
    ty, tx = -(-h // (_TILE // 2)), -(-w // (_TILE // 2))
    layer = _noise() if kind == "noise" else _texture(variant % 4)
    oy, ox = offset[1] % (_TILE // 2), offset[0] % (_TILE // 2)
    if ty > 1 or tx > 1:
        layer = np.tile(layer, (ty, tx, 1))
    out += layer[oy : oy + h, ox : ox + w]
    return np.clip(out, 0, 255).astype(np.uint8)


def paint(canvas: np.ndarray, thing, x0: int, y0: int) -> None:
    """Composite a thing's stamp with its corner at pixel (x0, y0), cut at the border, in place."""
    alpha, shade = stamp(thing.shape, thing.angle, thing.flip, thing.side)
    h, w = alpha.shape
    cy0, cx0 = max(-y0, 0), max(-x0, 0)
    cy1, cx1 = min(h, canvas.shape[0] - y0), min(w, canvas.shape[1] - x0)
    if cy1 <= cy0 or cx1 <= cx0:
        return
    cut = np.s_[cy0:cy1, cx0:cx1]
    fill = np.asarray(thing.rgb, np.uint16)
    if thing.texture != "plain":
        cell = max(round(min(h, w) / (4.2 if thing.texture == "striped" else 3.6)), 6)
        px, py = thing.phase
        turn = thing.variant % 4 if thing.texture == "striped" else 0
        need = max(h + py, w + px)
        tile = _pattern(thing.texture, cell, turn, 192 if need <= 192 else -(-need // 512) * 512)
        second = np.asarray(_SECOND[thing.color], np.uint16)
        fill = np.where(tile[py : py + h, px : px + w][cut][..., None], second, fill)
    fill = fill * shade[cut].astype(np.uint16)[..., None]  # at most 255 * 255
    a = alpha[cut].astype(np.uint32)[..., None]
    under = canvas[y0 + cy0 : y0 + cy1, x0 + cx0 : x0 + cx1]
    under[:] = (fill // 255 * a + under * (255 - a) + 127) // 255
    if thing.word:
        _print_word(canvas, thing, x0, y0, w, h)


def printed(thing, w: int, h: int) -> tuple[int, int, np.ndarray] | None:
    """(x, y, uint8 [h', w']) of the word inside a thing's w x h stamp; None if unreadable."""
    sx, sy = (0.74, 0.4) if thing.shape == "circle" else (0.84, 0.6)
    mark = word_stamp(thing.word, int(w * sx), int(h * sy))
    if mark is None:
        return None
    return (w - mark.shape[1]) // 2, (h - mark.shape[0]) // 2, mark


def _print_word(canvas: np.ndarray, thing, x0: int, y0: int, w: int, h: int) -> None:
    found = printed(thing, w, h)
    if found is None:
        return
    bx, by, mark = x0 + found[0], y0 + found[1], found[2]
    ink = 245 if sum(thing.rgb) < 380 else 15
    cy0, cx0 = max(-by, 0), max(-bx, 0)
    cy1 = min(mark.shape[0], canvas.shape[0] - by)
    cx1 = min(mark.shape[1], canvas.shape[1] - bx)
    if cy1 <= cy0 or cx1 <= cx0:
        return
    a = mark[cy0:cy1, cx0:cx1, None].astype(np.uint32)
    under = canvas[by + cy0 : by + cy1, bx + cx0 : bx + cx1]
    under[:] = (ink * a + under * (255 - a) + 127) // 255

"""A procedural scene as data: which things stand where, and how much of each can be seen.

A scene depends on (seed, index) and its options alone. Boxes are those of the *visible* part of a
thing, tight to the pixels that show it (its silhouette covers at least half of such a pixel and no
nearer thing does), as xyxy in [0, 1]. A thing of which too little is visible is never drawn.
"""

import random
from dataclasses import dataclass, field, replace

import numpy as np

from mg_jax.data.scenes import draw
from mg_jax.data.scenes.shapes import ANGLES, SHAPES, stamp
from mg_jax.errors import UserError

RESERVED_SEED = 700_000  # seeds from here on are kept for evaluation

# Longer side of a thing as a share of the picture's shorter side; the gaps keep words exact.
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.14, 0.17),
    "medium": (0.22, 0.27),
    "large": (0.36, 0.43),
}
MIN_VISIBLE = 0.5
WORDS = (
    "STOP", "OPEN", "EXIT", "SALE", "TAXI", "MILK", "CAFE", "ZOO", "BUS", "GO", "NO", "HOT",
    "ICE", "TEA", "FUN", "SUN", "MAP", "BAR", "GYM", "PARK", "SHOP", "FIRE", "LOVE", "FREE",
)  # fmt: skip
_PRINTABLE = ("sign", "square", "circle")
_STRAIGHT = ("square", "cross", "diamond", "circle", "ring", "sign")  # look alike when turned
_TINTS = (
    (206, 208, 212), (214, 206, 190), (188, 204, 212), (196, 210, 190), (210, 196, 200),
    (172, 172, 176), (178, 170, 156), (156, 168, 178), (190, 190, 170), (86, 90, 98),
    (94, 88, 82), (80, 94, 92),
)  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """One object. Attribute words are canonical; pixels: side, x0, y0 (stamp corner), velocity.

    box: visible extent, xyxy in [0, 1]. visible: visible share of the whole silhouette.
    readable: the printed word can be seen in full. key: stays the same over the frames of a video.
    """

    shape: str
    color: str
    size: str
    texture: str = "plain"
    word: str = ""
    angle: int = 0
    flip: bool = False
    side: int = 0
    rgb: tuple[int, int, int] = (0, 0, 0)
    phase: tuple[int, int] = (0, 0)
    variant: int = 0
    x0: int = 0
    y0: int = 0
    velocity: tuple[float, float] = (0.0, 0.0)
    key: int = 0
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    visible: float = 1.0
    readable: bool = False

    @property
    def center(self) -> tuple[float, float]:
        """Centre of the visible box, in [0, 1]."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def name(self) -> str:
        """Colour and shape, for example "red star"."""
        return f"{self.color} {self.shape}"

    def attributes(self) -> dict:
        """What evaluation needs to know, as plain JSON values."""
        return {
            "shape": self.shape,
            "color": self.color,
            "size": self.size,
            "texture": self.texture,
            "word": self.word if self.readable else "",
            "visible": round(self.visible, 4),
        }


@dataclass(frozen=True)
class World:
    """A scene. things: back to front. ids: uint8 [height, width], 1 + index of the thing that a
    pixel shows, 0 for the background."""

    seed: int
    index: int
    width: int
    height: int
    background: str
    tint: tuple[int, int, int]
    other_tint: tuple[int, int, int]
    variant: int
    offset: tuple[int, int]
    things: tuple[Thing, ...]
    ids: np.ndarray = field(repr=False, compare=False)

    def mask(self, i: int) -> np.ndarray:
        """Bool [height, width]: the visible pixels of thing i."""
        return self.ids == i + 1


def make_world(
    seed: int,
    index: int,
    width: int = 224,
    height: int = 224,
    *,
    min_objects: int = 2,
    max_objects: int = 12,
    distractors: float = 0.65,
    signs: float = 0.05,
) -> World:
    """The scene number `index` of a seed.

    distractors: share of scenes whose things are made of few shapes and colours, so that many
    share one of the two. signs: share of things that are signs, with a word where they are large
    enough, besides those that are by chance. Raises UserError for a picture below 32 pixels or
    wrong counts.
    """
    if min(width, height) < 32:
        raise UserError(f"scenes: size {width}x{height} is too small: at least 32 pixels a side")
    if not 1 <= min_objects <= max_objects <= 50:
        raise UserError(
            f"scenes: min_objects={min_objects}, max_objects={max_objects}: "
            "need 1 <= min_objects <= max_objects <= 50"
        )
    for attempt in range(20):
        rng = random.Random(f"{seed}:{index}:{attempt}:world")
        things = _sample(rng, width, height, min_objects, max_objects, distractors, signs)
        things, ids = settle(things, width, height, MIN_VISIBLE)
        if len(things) >= min_objects:
            break
    else:
        raise UserError(
            f"scenes: {min_objects} objects do not fit into {width}x{height} px: lower min_objects"
        )
    tint = rng.choice(_TINTS)
    shift = rng.randint(-36, 30)
    r, g, b = (min(max(v + shift + rng.randint(-9, 9), 70), 216) for v in tint)
    return World(
        seed,
        index,
        width,
        height,
        rng.choice(draw.BACKGROUNDS),
        tint,
        (r, g, b),
        rng.randrange(12),
        (rng.randrange(256), rng.randrange(256)),
        things,
        ids,
    )


def _sample(
    rng: random.Random,
    width: int,
    height: int,
    low: int,
    high: int,
    distractors: float,
    signs: float,
) -> list[Thing]:
    shapes, colors = list(SHAPES), list(draw.COLORS)
    if rng.random() < distractors:
        shapes = rng.sample(shapes, rng.randint(2, 4))
        colors = rng.sample(colors, rng.randint(2, 4))
    count = low + int((high - low + 1) * rng.random() ** 1.25)
    textured, moving = rng.random() < 0.6, min(width, height)
    things: list[Thing] = []
    taken: list[tuple[int, int, int, int]] = []
    for key in range(count):
        shape, color = rng.choice(shapes), rng.choice(colors)
        shape = "sign" if rng.random() < signs else shape  # words to read in most kinds of scenes
        # Crowded scenes need smaller things; each failure to find room makes one smaller still.
        u = rng.random() * (1.0 if count < 5 else 0.9 if count < 8 else 0.72)
        size = "large" if u > 0.78 else "medium" if u > 0.36 else "small"
        while True:
            thing, place = _place(rng, shape, color, size, key, width, height, taken)
            if thing is not None or size == "small":
                break
            size = "medium" if size == "large" else "small"
        if thing is None:
            continue
        word, texture = "", "plain"
        if shape == "sign" or (shape in _PRINTABLE and size != "small" and rng.random() < 0.5):
            word = rng.choice(WORDS) if thing.side >= 34 else ""
        if not word and shape != "sign" and textured and rng.random() < 0.45:
            texture = rng.choice(draw.TEXTURES[1:])
        things.append(
            replace(
                thing,
                word=word,
                texture=texture,
                rgb=draw.jitter_color(color, rng),
                phase=(rng.randrange(48), rng.randrange(48)),
                variant=rng.randrange(12),
                velocity=(rng.uniform(-0.05, 0.05) * moving, rng.uniform(-0.05, 0.05) * moving),
            )
        )
        taken.append(place)
    return things


def _place(rng, shape, color, size, key, width, height, taken):
    angle = 0 if shape in _STRAIGHT else rng.choice(ANGLES)
    flip = shape != "sign" and rng.random() < 0.5
    low, high = SIZES[size]
    side = max(round(rng.uniform(low, high) * min(width, height) / 2) * 2, 4)
    h, w = stamp(shape, angle, flip, side)[0].shape
    share = 0.42 if rng.random() < 0.3 else 0.03  # of the smaller box, that may be overlapped
    out = 0.15 if rng.random() < 0.12 else 0.0  # of the thing, that may stand outside the picture
    for _ in range(14):
        x0 = round(rng.uniform(-out * w, width - w + out * w))
        y0 = round(rng.uniform(-out * h, height - h + out * h))
        for a0, b0, a1, b1 in taken:
            dx, dy = min(x0 + w, a1) - max(x0, a0), min(y0 + h, b1) - max(y0, b0)
            if dx > 0 and dy > 0 and dx * dy > share * min(w * h, (a1 - a0) * (b1 - b0)):
                break
        else:
            thing = Thing(
                shape, color, size, angle=angle, flip=flip, side=side, x0=x0, y0=y0, key=key
            )
            return thing, (x0, y0, x0 + w, y0 + h)
    return None, None


def settle(
    things: list[Thing], width: int, height: int, min_visible: float
) -> tuple[tuple[Thing, ...], np.ndarray]:
    """Decide what is visible, nearest first: the kept things with boxes, and the id map.

    A thing with less than `min_visible` of its silhouette in view, or none of it, is left out and
    hides nothing.
    """
    ids = np.zeros((height, width), np.uint8)
    kept: list[tuple[int, Thing]] = []
    for label in range(len(things), 0, -1):
        thing = things[label - 1]
        alpha = stamp(thing.shape, thing.angle, thing.flip, thing.side)[0]
        solid = alpha > 127
        h, w = solid.shape
        x0, y0 = max(thing.x0, 0), max(thing.y0, 0)
        x1, y1 = min(thing.x0 + w, width), min(thing.y0 + h, height)
        if x1 <= x0 or y1 <= y0:
            continue
        part = ids[y0:y1, x0:x1]
        seen = solid[y0 - thing.y0 : y1 - thing.y0, x0 - thing.x0 : x1 - thing.x0] & (part == 0)
        visible = int(np.count_nonzero(seen)) / max(int(np.count_nonzero(solid)), 1)
        if visible == 0 or visible < min_visible:
            continue
        readable = False
        if thing.word:
            readable = _word_in_view(thing, w, h, seen, x0 - thing.x0, y0 - thing.y0)
        part[seen] = label
        rows, cols = seen.any(1), seen.any(0)
        top, left = int(rows.argmax()), int(cols.argmax())
        bottom, right = _end(rows), _end(cols)
        box = (
            (x0 + left) / width,
            (y0 + top) / height,
            (x0 + right) / width,
            (y0 + bottom) / height,
        )
        kept.append((label, replace(thing, box=box, visible=visible, readable=readable)))
    kept.reverse()
    renumber = np.zeros(len(things) + 1, np.uint8)
    for new, (old, _) in enumerate(kept):
        renumber[old] = new + 1
    return tuple(t for _, t in kept), renumber[ids]


def _end(flags: np.ndarray) -> int:
    """One past the last True of a bool vector."""
    return len(flags) - int(flags[::-1].argmax())


def _word_in_view(thing: Thing, w: int, h: int, seen: np.ndarray, dx: int, dy: int) -> bool:
    found = draw.printed(thing, w, h)
    if found is None:
        return False
    x, y, mark = found
    view = seen[max(y - dy, 0) : y - dy + mark.shape[0], max(x - dx, 0) : x - dx + mark.shape[1]]
    return view.size == mark.size and bool(view.mean() > 0.98)


def render(world: World) -> np.ndarray:
    """The picture, uint8 RGB [height, width, 3]."""
    canvas = draw.background(
        world.background,
        world.tint,
        world.other_tint,
        world.variant,
        world.offset,
        world.width,
        world.height,
    )
    for thing in world.things:
        draw.paint(canvas, thing, thing.x0, thing.y0)
    return canvas


def at_time(world: World, t: float) -> World:
    """The same scene t frames later: things drift straight on; boxes are exact.

    A thing that is out of sight at t is absent from `things`; `Thing.key` tells who is who.
    """
    moved = [
        replace(
            thing,
            x0=round(thing.x0 + thing.velocity[0] * t),
            y0=round(thing.y0 + thing.velocity[1] * t),
        )
        for thing in world.things
    ]
    things, ids = settle(moved, world.width, world.height, 0.0)
    return replace(world, things=things, ids=ids)

"""What a detector would say of a scene: its boxes, not quite right, some missed and some false.

In the form of an entry of upstream MG-LLaVA's detector files (spec 9): integer xyxy in pixels of
the picture, which may lie a little outside, a score above 0.2 each, the class as label.
"""

import random
from typing import Any

from mg_jax.data.scenes.shapes import SHAPES
from mg_jax.data.scenes.world import World

MISSED = 0.1  # share of things without a box
DOUBLE = 0.1  # share of found things with a second, weaker box, which suppression should remove
FALSE = (0.6, 0.3, 0.1)  # how often there are 0, 1 and 2 boxes of nothing
JITTER = 0.04  # most that an edge is off, as a share of the box


def detections(world: World, rng: random.Random) -> dict[str, list[Any]]:
    """{"boxes": [[x0, y0, x1, y1]], "scores", "labels"} of a scene, the highest score first."""
    found: list[tuple[float, list[int], str]] = []
    for thing in world.things:
        seen = rng.random() >= MISSED
        score = rng.uniform(0.35, 0.95)
        box = _off(thing.box, world, rng)
        double = rng.random() < DOUBLE
        if not seen:
            continue
        found.append((score, box, thing.shape))
        if double:
            found.append((score * rng.uniform(0.6, 0.9), _off(thing.box, world, rng), thing.shape))
    for _ in range(rng.choices(range(len(FALSE)), FALSE)[0]):
        w, h = rng.uniform(0.1, 0.3), rng.uniform(0.1, 0.3)
        x, y = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
        box = _off((x, y, x + w, y + h), world, rng)
        found.append((rng.uniform(0.21, 0.45), box, rng.choice(list(SHAPES))))
    found.sort(key=lambda item: -item[0])
    return {
        "boxes": [box for _, box, _ in found],
        "scores": [round(max(score, 0.21), 4) for score, _, _ in found],
        "labels": [label for _, _, label in found],
    }


def _off(box: tuple[float, ...], world: World, rng: random.Random) -> list[int]:
    """A box of shares as integer pixels, each edge off by up to JITTER of the box's side."""
    sides = (box[2] - box[0], box[3] - box[1])
    pixels = []
    for k, size in enumerate((world.width, world.height) * 2):
        pixels.append(int((box[k] + rng.uniform(-JITTER, JITTER) * sides[k % 2]) * size))
    x0, y0, x1, y1 = pixels
    return [x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)]

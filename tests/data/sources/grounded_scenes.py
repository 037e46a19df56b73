"""Scenes with expressions, captions and relations, for the tests of readers of grounded text."""

from dataclasses import replace

import numpy as np
from PIL import Image

from mg_jax.data.sources import open_source
from mg_jax.example import Example, Expression, Region, Turn


def scenes(n=4):
    """Each object has an expression of its own, the first two share one; two captions; turns whose
    question points at a mask."""
    source = open_source(f"scenes:seed=51,n={n},size=96x64,tasks=none,min_objects=3")
    return [grounded(source[i]) for i in range(n)]


def grounded(example: Example) -> Example:
    names = [r.label for r in example.objects]
    expressions = [Expression(f"the {name} № {k}", (k,)) for k, name in enumerate(names)]
    captions = (
        f"A café: <p>the {names[0]} № 0</p><r:0> , <p>the {names[1]} № 1</p><r:1> & more .",
        f"<p>Two things</p><r:0><r:1> < 3 things , says <p>the {names[2]} № 2</p><r:2>",
    )
    return replace(
        example,
        regions=example.objects,
        expressions=(*expressions, Expression("Two things", (0, 1))),
        captions=captions,
        relations=((0, "left of", 1), (2, "near", 0)),
        turns=(
            Turn("What is <r:0> beside <r:2>?", "It is <p>a thing</p><r:0><r:1> ."),
            Turn("Why?", "1 < 2, and <r:1> too."),
        ),
    )


def masked(example: Example) -> Example:
    """The example with masks for regions: the lower half of each box."""
    regions = []
    for region in example.regions:
        x0, y0, x1, y1 = (round(v * s) for v, s in zip(region.box, (96, 64, 96, 64), strict=True))
        array = np.zeros((64, 96), bool)
        array[(y0 + y1) // 2 : y1, x0:x1] = True
        regions.append(Region.from_mask(array))
    return replace(example, regions=tuple(regions))


def all_of(source):
    return [source[i] for i in range(len(source))]


def places(example, numbers):
    """The boxes of regions, rounded to less than a thousandth of a pixel."""
    return [tuple(np.round(example.regions[k].box, 5)) for k in numbers]


def texts(example):
    """Expressions with their boxes."""
    return [(e.text, places(example, e.regions)) for e in example.expressions]


def picture(path, width=40, height=20):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)
    return path

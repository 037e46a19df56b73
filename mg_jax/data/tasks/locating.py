"""Tasks that are answered with boxes."""

from collections.abc import Callable

import numpy as np

from mg_jax.data.tasks.base import (
    DENSE,
    NEGATIVES,
    Talk,
    absent_names,
    classes,
    draw,
    is_empty,
    named,
    numbered,
    shuffled,
)
from mg_jax.example import Box, Example, Region
from mg_jax.text import markup, words
from mg_jax.text.instructions import Instructions


def rec(example: Example, rng: np.random.Generator, wording: Instructions) -> Example | None:
    """Locate what an expression names: all regions of it, as Groma does for GrIT.

    One expression, drawn; where the picture has none, a class with one member. Expressions that
    occur with different regions are not asked. Negatives: expressions without region, else names
    that are absent (in a picture where nothing can be located only if nothing is annotated).
    """
    talk = Talk(example)
    there = {text: regions for text, regions in expressions(example).items() if regions}
    there = there or {n: tuple(r) for n, r in classes(example).items() if not r[1:]}
    texts = filter(None, (words.phrase(e.text) for e in example.expressions if not e.regions))
    missing = dict.fromkeys(texts, 1.0)
    if there or is_empty(example):
        missing = missing or absent_names(example)
    if missing and (not there or rng.random() < NEGATIVES):
        text = draw(missing, rng)
        talk.deny("rec", rng, wording, text, words.without_article(text))
    elif there:
        phrase = list(there)[rng.integers(len(there))]
        regions = there[phrase]
        user = wording.draw("rec", rng, f"<p>{phrase}</p>")
        talk.say("rec", user, wording.located(phrase, talk.mark(*regions)))
    return talk.done()


def expressions(example: Example) -> dict[str, tuple[Region, ...]]:
    """The regions of every expression that is not ambiguous, () of what is not in the picture."""
    found: dict[str, set[tuple[int, ...]]] = {}
    texts: dict[str, str] = {}
    for expression in example.expressions:
        text = words.phrase(expression.text)
        if text:
            found.setdefault(text.casefold(), set()).add(expression.regions)
            texts.setdefault(text.casefold(), text)
    return {
        texts[key]: tuple(example.regions[k] for k in min(places))
        for key, places in found.items()
        if len(places) == 1
    }


def all_instances(
    example: Example, rng: np.random.Generator, wording: Instructions
) -> Example | None:
    """Locate every object of one class, its name in lower case, the boxes from left to right.

    Negatives: names that are absent (see `rec`).
    """
    talk = Talk(example)
    there = classes(example)
    missing = absent_names(example) if there or is_empty(example) else {}
    if missing and (not there or rng.random() < NEGATIVES):
        name = draw(missing, rng)
        talk.deny("all_instances", rng, wording, name, name)
    elif there:
        name = list(there)[rng.integers(len(there))]
        regions = sorted(there[name], key=lambda r: (r.box[0] + r.box[2], r.box))
        user = wording.draw("all_instances", rng, f"<p>{name}</p>")
        talk.say("all_instances", user, wording.located(name, talk.mark(*regions)))
    return talk.done()


def dense_detection(
    example: Example, rng: np.random.Generator, wording: Instructions
) -> Example | None:
    """Name and locate up to DENSE objects (a random choice of more) in raster order: by the upper
    edge, then by the left one."""
    return _dense(example, rng, wording, lambda box: (box[1], box[0]))


def dense_detection_centres(
    example: Example, rng: np.random.Generator, wording: Instructions
) -> Example | None:
    """The same by the height of their centres, then from left to right."""
    return _dense(example, rng, wording, lambda box: (box[1] + box[3], box[0] + box[2]))


def _dense(
    example: Example,
    rng: np.random.Generator,
    wording: Instructions,
    key: Callable[[Box], tuple[float, float]],
) -> Example | None:
    talk = Talk(example)
    objects = shuffled(named(example), rng)[:DENSE]
    if len(objects) < 2:
        return None
    objects.sort(key=lambda item: key(item[1].box))
    listed = numbered([f"<p>{name}</p>{talk.mark(region)}" for name, region in objects])
    user = wording.draw("dense_detection", rng)
    talk.say("dense_detection", user, wording.draw("dense_detection_answer", rng, listed))
    return talk.done()


def grounded_caption(
    example: Example, rng: np.random.Generator, wording: Instructions
) -> Example | None:
    """Describe the picture, phrases with their places; the caption as annotated."""
    talk = Talk(example)
    captions = [c for c in example.captions if markup.regions_of(c)]
    if captions:
        caption = _without_idle_phrases(captions[rng.integers(len(captions))].strip())
        answer = talk.move(caption, example.regions)
        talk.say("grounded_caption", wording.draw("grounded_caption", rng), answer)
    return talk.done()


def _without_idle_phrases(text: str) -> str:
    """The text, phrases without a place as plain words."""
    return markup.format(
        markup.Segment("text", s.text) if s.kind == "phrase" and not s.regions else s
        for s in markup.parse(text)
    )

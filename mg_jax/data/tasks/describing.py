"""Tasks that are answered with descriptions: caption, region_caption, region_description,
dense_referring."""

import numpy as np

from mg_jax.data.tasks.base import DENSE, ROUNDS, Talk, named, numbered, shuffled
from mg_jax.example import Example, Region
from mg_jax.text import markup, words
from mg_jax.text.instructions import Instructions

LONG_CAPTION = 40  # words from which on a caption is asked for as a detailed one
LONG_EXPRESSION = 6  # words from which on an expression describes its region in detail
_OVERLAP = 0.6  # IoU up to which regions of one conversation may overlap


def caption(example: Example, rng: np.random.Generator, wording: Instructions) -> Example | None:
    """Describe the picture in plain words: one of its captions without marks."""
    talk = Talk(example)
    captions = list(filter(None, map(markup.strip, example.captions)))
    if captions:
        text = captions[rng.integers(len(captions))]
        key = "caption" if len(text.split()) < LONG_CAPTION else "detailed_caption"
        talk.say("caption", wording.draw(key, rng), text)
    return talk.done()


def region_caption(
    example: Example, rng: np.random.Generator, wording: Instructions
) -> Example | None:
    """Say what is in a region, one round a region, as Groma does for Visual Genome: no box twice,
    none that overlaps an earlier one by more than an IoU of 0.6 (in random order), at most ROUNDS.

    The answer is an expression of that region alone, else its label, capitalised.
    """
    talk = Talk(example)
    for text, region in _apart(_captioned(example) or named(example), rng):
        user = wording.draw("region_caption", rng, talk.mark(region))
        talk.say("region_caption", user, text.lower().capitalize())
    return talk.done()


def region_description(
    example: Example, rng: np.random.Generator, wording: Instructions
) -> Example | None:
    """Describe one region in detail, as Groma does for RefCOCOg: with an expression of that region
    alone that has at least LONG_EXPRESSION words, capitalised."""
    talk = Talk(example)
    long = [c for c in _captioned(example) if len(c[0].split()) >= LONG_EXPRESSION]
    if long:
        text, region = long[rng.integers(len(long))]
        user = wording.draw("region_description", rng, talk.mark(region))
        talk.say("region_description", user, text.lower().capitalize())
    return talk.done()


def dense_referring(
    example: Example, rng: np.random.Generator, wording: Instructions
) -> Example | None:
    """Name up to DENSE objects, drawn, that one question points at."""
    talk = Talk(example)
    objects = shuffled(named(example), rng)[:DENSE]
    if len(objects) < 2:
        return None
    places = numbered([talk.mark(region) for _, region in objects])
    names = numbered([name for name, _ in objects])
    user = wording.draw("dense_referring", rng, places)
    talk.say("dense_referring", user, wording.draw("dense_referring_answer", rng, names))
    return talk.done()


def _captioned(example: Example) -> list[tuple[str, Region]]:
    """(text, region) of the expressions that name one region alone."""
    pairs = [(words.phrase(e.text), e.regions) for e in example.expressions]
    return [(text, example.regions[k[0]]) for text, k in pairs if text and len(k) == 1]


def _apart(items: list[tuple[str, Region]], rng: np.random.Generator) -> list[tuple[str, Region]]:
    """Up to ROUNDS of the items in random order, without those whose box overlaps an earlier one's
    too much."""
    from mg_jax.boxes import iou  # here, since it brings jax along

    kept: list[tuple[str, Region]] = []
    for text, region in shuffled(items, rng):
        others = np.array([r.box for _, r in kept], np.float64).reshape(-1, 4)
        if (iou(np.array([region.box]), others) <= _OVERLAP).all():
            kept.append((text, region))
        if len(kept) == ROUNDS:
            break
    return kept

"""Fake systems for evaluation: an oracle that answers what is annotated, and worse ones."""

import numpy as np
import pytest

from mg_jax.answer import Answer, Phrase
from mg_jax.text import markup


def annotated(item) -> Answer:
    """The annotated answer of an item, as a system would give it."""
    text, phrases = markup.strip(item.reference), []
    for segment in markup.parse(item.reference):
        if segment.regions:
            regions = tuple(item.example.regions[k] for k in segment.regions)
            boxes = tuple(tuple(box) for box in item.pixel_boxes(regions).tolist())
            phrases.append(Phrase(segment.text, (0, 0), boxes, (0.9,) * len(boxes)))
    absent = markup.says_absent(text) and not phrases
    width, height = item.example.width, item.example.height
    return Answer(text, tuple(phrases), absent, width=width, height=height)


class Fake:
    """predict and propose by a rule from item to answer; remembers what it was asked."""

    def __init__(self, items, rule=annotated):
        self.items, self.rule = items, rule
        self.queries, self.pictures, self.sizes = [], [], []
        self._next = iter(items)

    def predict(self, queries):
        self.queries += queries
        self.sizes.append(len(queries))
        return [self.rule(next(self._next)) for _ in queries]

    def propose(self, pictures):
        self.pictures += pictures
        self.sizes.append(len(pictures))
        found = []
        for _ in pictures:
            item = next(self._next)
            boxes = item.pixel_boxes(item.example.objects)
            found.append((boxes, np.linspace(0.9, 0.5, len(boxes))))
        return found


@pytest.fixture
def fake():
    """The class Fake."""
    return Fake

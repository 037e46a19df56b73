"""Tasks that are answered with words: presence, regions, grounded_caption."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mg_jax.answer import Answer
from mg_jax.data.scenes import language
from mg_jax.evals import asking, metrics
from mg_jax.evals.base import Scores, Task
from mg_jax.evals.metrics import Grounded
from mg_jax.evals.questions import Item, yes_no
from mg_jax.example import Example
from mg_jax.text import markup


class Presence(Task):
    """Is it there? Yes and no equally often in scenes with an even `n`, and of annotations, where
    every picture is asked for as many labels that it has as the data set says it lacks."""

    name, headline = "presence", "accuracy"
    rule = "always yes, or always no"
    scenes = {"tasks": "presence"}
    max_new_tokens = 32

    def accepts(self, item: Item) -> bool:
        known = item.record.get("task")
        if known:
            return known == "presence"
        return bool(re.match(r"\W*(yes|no)\b", item.reference, re.I))

    def write(self, example: Example) -> Example | None:
        return asking.presence(example)

    def read(self, item: Item, answer: Answer) -> bool | None:
        return yes_no(answer.text)

    def invalid(self, item: Item, prediction: bool | None) -> bool:
        return prediction is None

    def drawn(self, prediction: bool | None) -> list[tuple[str, np.ndarray]]:
        return []

    def right(self, item: Item, prediction: bool | None) -> bool:
        return prediction is _truth(item)

    def score(self, items: Sequence[Item], predictions: Sequence[bool | None]) -> Scores:
        yield from metrics.yes_no(predictions, [bool(_truth(i)) for i in items]).items()

    def strategies(self, items: Sequence[Item]) -> Iterator[list[bool | None]]:
        yield [True] * len(items)
        yield [False] * len(items)


def _truth(item: Item) -> bool | None:
    return yes_no(markup.strip(item.reference))


class Regions(Task):
    """Name the thing in a box: accuracy counts answers with its colour and its shape, exactly.

    A data text with tasks=point, scribble or mask asks the same about these kinds of regions.
    """

    name, headline = "regions", "accuracy"
    rule = "always the most frequent colour and shape"
    scenes = {"tasks": "region"}
    max_new_tokens = 32

    def accepts(self, item: Item) -> bool:
        known = item.record.get("task") in ("region", "point", "scribble", "mask")
        return known and isinstance(item.record.get("object"), int) and bool(attributes(item))

    def read(self, item: Item, answer: Answer) -> str:
        return answer.text

    def invalid(self, item: Item, prediction: str) -> bool:
        return language.parse_description(prediction) == (None, None)

    def drawn(self, prediction: str) -> list[tuple[str, np.ndarray]]:
        return []

    def right(self, item: Item, prediction: str) -> bool:
        return language.describe_matches(prediction, _asked_object(item))

    def score(self, items: Sequence[Item], predictions: Sequence[str]) -> Scores:
        matches = []
        for item, text in zip(items, predictions, strict=True):
            color, shape = language.parse_description(text)
            true = _asked_object(item)
            is_shape, is_color = shape == true["shape"], color == true["color"]
            # two colours before one shape match no thing
            matches.append((is_shape, self.right(item, text) if is_shape else is_color))
        yield from metrics.descriptions(matches).items()

    def strategies(self, items: Sequence[Item]) -> Iterator[list[str]]:
        names = Counter("{color} {shape}".format(**_asked_object(item)) for item in items)
        yield [names.most_common(1)[0][0]] * len(items)

    def expected_boxes(self, item: Item) -> np.ndarray:
        return item.pixel_boxes((item.example.objects[item.record["object"]],))


def attributes(item: Item) -> list[Mapping[str, Any]]:
    """Attributes of every object of the picture, where the source knows them, else empty."""
    found = item.example.meta.get("objects")
    if not isinstance(found, list) or len(found) != len(item.example.objects):
        return []
    known = all(isinstance(o, Mapping) and {"shape", "color"} <= set(o) for o in found)
    return found if known else []


def _asked_object(item: Item) -> Mapping[str, Any]:
    return attributes(item)[item.record["object"]]


class GroundedCaption(Task):
    """Describe the picture with boxes. phrase_recall: share of the things that the annotated
    caption names (at most the 8 largest) which a phrase names rightly with IoU >= 0.5. invented:
    share of phrase and box pairs where no object of that colour and shape is in the picture, or
    the box meets none of them at IoU 0.5 (see metrics.phrase_grounding)."""

    name, headline = "grounded_caption", "phrase_recall"
    rule = "the annotated caption and boxes of the picture before"
    scenes = {"tasks": "grounded_caption"}
    max_new_tokens = 192

    def accepts(self, item: Item) -> bool:
        known = item.record.get("task") == "grounded_caption"
        return known and bool(attributes(item)) and bool(item.record.get("objects"))

    def read(self, item: Item, answer: Answer) -> list[tuple[str, np.ndarray]]:
        return [(p.text, metrics.as_boxes(p.boxes)) for p in answer.phrases]

    def invalid(self, item: Item, prediction: list) -> bool:
        return not any(len(boxes) for _, boxes in prediction)

    def drawn(self, prediction: list) -> list[tuple[str, np.ndarray]]:
        return [(text, box) for text, boxes in prediction for box in boxes]

    def _grounded(self, item: Item, prediction: list) -> Grounded:
        fits = [[names(text, o) for o in attributes(item)] for text, _ in prediction]
        objects = item.pixel_boxes(item.example.objects)
        return Grounded(prediction, objects, fits, item.record["objects"])

    def right(self, item: Item, prediction: list) -> bool:
        one = metrics.phrase_grounding([self._grounded(item, prediction)])
        return one["phrase_recall"] == 1.0 and one["invented"] == 0.0

    def score(self, items: Sequence[Item], predictions: Sequence[list]) -> Scores:
        pairs = zip(items, predictions, strict=True)
        yield from metrics.phrase_grounding([self._grounded(i, p) for i, p in pairs]).items()

    def strategies(self, items: Sequence[Item]) -> Iterator[list]:
        captions = [
            [
                (s.text, item.pixel_boxes(tuple(item.example.regions[k] for k in s.regions)))
                for s in markup.parse(item.reference)
                if s.kind == "phrase"
            ]
            for item in items
        ]
        yield captions[-1:] + captions[:-1]


def names(phrase: str, thing: Mapping[str, Any]) -> bool:
    """True when a phrase's shape and colour are true of a thing; a colour that is not said, or
    "object" for the shape, fits any. Size, texture and printed words are not judged."""
    color, shape = language.parse_description(phrase)
    if shape is None:
        head = re.search(r"\b(" + "|".join(language.THING_WORDS) + r")s?\b", phrase, re.I)
        return head is not None and color in (None, thing["color"])
    if color is None:
        return shape == thing["shape"]
    return language.describe_matches(phrase, thing)

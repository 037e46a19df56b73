"""Referring classification as Ferret's test on LVIS asks for it: this or that?"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mg_jax.answer import Answer
from mg_jax.data.regions import as_point
from mg_jax.data.tasks.base import Talk, absent_names, draw, named, present_names
from mg_jax.errors import UserError
from mg_jax.evals.base import Scores, Task
from mg_jax.evals.ferret_text import class_names, names_class, without_denials
from mg_jax.evals.questions import Item, asked
from mg_jax.example import Example, Region
from mg_jax.text.instructions.ferret import which

OBJECTS = 10  # of a picture that are asked about, a draw where it has more


class WhichBox(Task):
    """Is the object in a box a <name> or a <name>? accuracy: the answer names its class by the
    published reading (`ferret_text.names_class`), so one that names both is right too; both: share
    of answers that do; one that names neither is invalid. Of scenes also the accuracy of small,
    medium and large things.

    Of annotations: up to OBJECTS labelled objects a picture. The other name is drawn from those
    that the data set says are absent, else from the picture's other labels.
    """

    name, headline = "which_box", "accuracy"
    rule = "always the first, or always the second name"
    scenes = {"tasks": "which_box"}
    max_new_tokens = 32
    kind = "box"

    def accepts(self, item: Item) -> bool:
        return item.record.get("task") == self.name

    def write(self, example: Example) -> Example | None:
        rng = np.random.default_rng(zlib.crc32(example.id.encode()))
        talk = Talk(example)
        objects = [(n, r) for n, r in named(example) if self.shown(r, example, rng) is not None]
        absent, there = absent_names(example), present_names(example)
        for k in sorted(rng.permutation(len(objects))[:OBJECTS]):
            name, region = objects[k]
            rivals = absent or dict.fromkeys((n for n in there if n != name), 1.0)
            place = self.shown(region, example, rng)
            if not rivals or place is None:
                continue
            talk.mark(place)
            mark = talk.regions.index(place)
            user = which(mark, len(talk.turns), name, draw(rivals, rng))
            if talk.say(self.name, user, name):
                talk.records[-1] |= {
                    "answer": name,
                    "synonyms": (example.meta.get("synonyms") or {}).get(region.label or "", ()),
                }
        return talk.done()

    def shown(self, region: Region, example: Example, rng: np.random.Generator) -> Region | None:
        """What a question about an annotated object points at, without its name; None where it
        cannot be asked about in this way."""
        return Region("box", region.box)

    def read(self, item: Item, answer: Answer) -> str:
        return answer.text

    def _names(self, item: Item) -> tuple[str, Sequence[str]]:
        return str(item.record["answer"]), item.record.get("synonyms") or ()

    def invalid(self, item: Item, prediction: str) -> bool:
        return not (self.right(item, prediction) or _other(item) in without_denials(prediction))

    def drawn(self, prediction: str) -> list[tuple[str, np.ndarray]]:
        return []

    def right(self, item: Item, prediction: str) -> bool:
        name, synonyms = self._names(item)
        return names_class(prediction, name, synonyms)

    def score(self, items: Sequence[Item], predictions: Sequence[str]) -> Scores:
        pairs = list(zip(items, predictions, strict=True))
        right = [self.right(i, p) for i, p in pairs]
        both = [
            r and _other(i) in without_denials(p) for (i, p), r in zip(pairs, right, strict=True)
        ]
        yield "accuracy", float(np.mean(right))
        yield "both", float(np.mean(both))
        sizes = [_size(item) for item in items]
        for size in sorted(set(filter(None, sizes))):
            yield size, float(np.mean([r for r, s in zip(right, sizes, strict=True) if s == size]))

    def strategies(self, items: Sequence[Item]) -> Iterator[list[Any]]:
        yield [_choices(item)[0] for item in items]
        yield [_choices(item)[1] for item in items]

    def expected_boxes(self, item: Item) -> np.ndarray:
        return item.pixel_boxes(asked(item.example, item.turn or 0)[1])


class WhichPoint(WhichBox):
    """The same about the object under a point: of its mask, where it has one, the pixel nearest to
    the middle of its box, else a draw around that."""

    name, scenes, kind = "which_point", {"tasks": "which_point"}, "point"

    def shown(self, region: Region, example: Example, rng: np.random.Generator) -> Region | None:
        point = as_point(region, example.width, example.height, rng)
        return Region.from_point(*point.points[0], clip=True)


class WhichFree(WhichBox):
    """The same about an object whose shape is given: annotated masks; of scenes scribbles too."""

    name, scenes, kind = "which_free", {"tasks": "which_free"}, "mask"
    lacking = "it asks about masks: write masks=keep behind coco: or lvis: data"

    def shown(self, region: Region, example: Example, rng: np.random.Generator) -> Region | None:
        return replace(region, label=None) if region.mask is not None else None


def published_region(row: Mapping[str, Any], kind: str) -> Region:
    """The region of a line of Ferret's own test file on LVIS.

    kind: "point" (sample_point), "box" (bbox_norm) or "free_shape" (free_shape_segment_mask, [W, H]
    as upstream's masks are, within free_shape_bbox_raw; that alone where no pixel is set). Raises
    UserError for another kind.
    """
    width, height = row["width"], row["height"]
    if kind == "point":
        x, y = row["sample_point"]
        return Region.from_point(x / width, y / height, clip=True)
    if kind == "box":
        return Region.from_box(row["bbox_norm"], clip=True)
    if kind != "free_shape":
        raise UserError(f"region kind {kind!r}: choose point, box or free_shape")
    x0, y0, x1, y1 = row["free_shape_bbox_raw"]
    box = x0 / width, y0 / height, x1 / width, y1 / height
    inside = np.asarray(row["free_shape_segment_mask"], bool).T
    return replace(Region.from_mask(inside), box=box) if inside.any() else Region("box", box)


def _choices(item: Item) -> tuple[str, str]:
    """Both names of a question."""
    text = item.example.turns[item.turn or 0].user
    first, _, second = text.partition(" of the image a ")[2].rstrip("?").partition(" or a ")
    return first, second


def _size(item: Item) -> str:
    """How large the thing is that a question is about, "" where the source does not say."""
    known, number = item.example.meta.get("objects"), item.record.get("object")
    if not isinstance(known, list) or not isinstance(number, int):
        return ""
    return str(known[number].get("size", ""))


def _other(item: Item) -> str:
    """The wrong name of a question."""
    first, second = _choices(item)
    return second if first == class_names(str(item.record["answer"]), ())[0] else first

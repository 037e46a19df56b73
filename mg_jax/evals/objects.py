"""Tasks with object images (TinyGroundingGPT): object_match, object_choice, object_relation."""

import re
from collections.abc import Iterator, Sequence
from string import ascii_uppercase

import numpy as np

from mg_jax.answer import Answer
from mg_jax.data.tasks.objects import OPTIONS
from mg_jax.evals import asking, metrics
from mg_jax.evals.base import Located, Scores, Task, located, place
from mg_jax.evals.locating import central, largest_first
from mg_jax.evals.questions import Item
from mg_jax.example import Example

_LETTER = re.compile(
    r"\W*(?:(?:the )?(?:answer|option)(?: is)?\W*)?([A-Za-z])(?=\s*(?:[.):,]|$))", re.I
)
_YES_NO = re.compile(r"\W*(yes|no)\b", re.I)


class ObjectMatch(Task):
    """Where is the thing whose image is shown: acc@0.5 of the first box of an answer.

    Of annotations: up to 10 boxes of a picture that make an object image (0.5 % to 60 % of it).
    """

    name, headline, needs = "object_match", "acc@0.5", "object images"
    rule = "always the largest, or always the most central, of the picture's objects"
    scenes = {"tasks": "object_match", "min_objects": 4}

    def accepts(self, item: Item) -> bool:
        return item.record.get("task") == "object_match"

    def write(self, example: Example) -> Example | None:
        return asking.object_match(example)

    def read(self, item: Item, answer: Answer) -> Located:
        return located(answer)

    def right(self, item: Item, prediction: Located) -> bool:
        if not len(prediction.boxes):
            return False
        iou = metrics.iou_matrix(prediction.boxes[:1], self.expected_boxes(item))
        return bool(iou.max() > 0.5)

    def score(self, items: Sequence[Item], predictions: Sequence[Located]) -> Scores:
        first = {
            i.key: p.boxes[0] if len(p.boxes) else None
            for i, p in zip(items, predictions, strict=True)
        }
        expected = {i.key: self.expected_boxes(i)[0] for i in items}
        yield from metrics.referring(first, expected).items()

    def strategies(self, items: Sequence[Item]) -> Iterator[list[Located]]:
        yield [place(largest_first(item)[:1]) for item in items]
        yield [place(central(item)) for item in items]


class Lettered(Task):
    """A question whose answer is a letter, "yes" or "no"; accuracy, of each kind of question too.

    The first letter that an answer gives counts.
    """

    headline, needs = "accuracy", "object images"
    rule = "always the same letter or word, that which is right most often"
    max_new_tokens = 16
    kinds: tuple[str, ...]

    def accepts(self, item: Item) -> bool:
        return item.record.get("task") in self.kinds and bool(truth(item.reference))

    def read(self, item: Item, answer: Answer) -> str:
        said = truth(answer.text)
        options = item.record.get("options", len(ascii_uppercase))
        return "" if said in ascii_uppercase[options:] else said

    def invalid(self, item: Item, prediction: str) -> bool:
        return not prediction

    def drawn(self, prediction: str) -> list[tuple[str, np.ndarray]]:
        return []

    def right(self, item: Item, prediction: str) -> bool:
        return prediction == truth(item.reference)

    def score(self, items: Sequence[Item], predictions: Sequence[str]) -> Scores:
        right = [self.right(i, p) for i, p in zip(items, predictions, strict=True)]
        yield "accuracy", float(np.mean(right))
        for kind in sorted({_kind(i) for i in items}):
            some = [r for i, r in zip(items, right, strict=True) if _kind(i) == kind]
            yield f"accuracy/{kind}", float(np.mean(some))
            yield f"n/{kind}", len(some)

    def strategies(self, items: Sequence[Item]) -> Iterator[list[str]]:
        for answer in sorted({truth(i.reference) for i in items}):
            yield [answer] * len(items)


class ObjectChoice(Lettered):
    """Which of four object images is at given coordinates (place_choice), or shows what a text
    names (name_choice): accuracy of the letter."""

    name, kinds = "object_choice", ("place_choice", "name_choice")
    scenes = {"tasks": "place_choice+name_choice", "min_objects": 5}

    def accepts(self, item: Item) -> bool:
        return super().accepts(item) and item.record.get("options") == OPTIONS

    def write(self, example: Example) -> Example | None:
        return asking.object_choice(example)


class ObjectRelation(Lettered):
    """How things relate that are shown as images: accuracy of the letter (which one, how) or of
    yes and no (whether)."""

    name, kinds = "object_relation", ("object_relation",)
    scenes = {"tasks": "object_relation", "min_objects": 3}

    def write(self, example: Example) -> Example | None:
        return asking.object_relation(example)


def truth(text: str) -> str:
    """The letter, "yes" or "no" that an answer begins with; "" for neither."""
    if found := _YES_NO.match(text):
        return found[1].lower()
    found = _LETTER.match(text)
    return found[1].upper() if found else ""


def _kind(item: Item) -> str:
    task = str(item.record.get("task", ""))
    if task != "object_relation":
        return task
    return "choice" if item.record.get("options") else "yes_no"

"""Tasks whose answers name one fact: vqa and reading of scenes, moved and direction of videos.

They are read from free words, so that "Red.", "It is red." and "a red one" are one answer; one that
names several colours, words or places is none.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from mg_jax.answer import Answer
from mg_jax.data.scenes import language
from mg_jax.evals.base import Scores, Task
from mg_jax.evals.questions import Item, yes_no
from mg_jax.text import markup

_SIDES = {
    "left": "left", "right": "right", "above": "above", "higher": "above", "below": "below",
    "under": "below",
}  # fmt: skip
_WAYS = {"left": "left", "right": "right", "up": "up", "upwards": "up", "down": "down",
         "downwards": "down"}  # fmt: skip
_STAYS = re.compile(r"\b(does not|doesn't|not) move|\bstays?\b|\bstill\b", re.IGNORECASE)


class Fact(Task):
    """accuracy, and the same of each kind of question. What is right is what `parse` finds in the
    annotated answer."""

    headline = "accuracy"
    rule = "always the most frequent answer to questions of the kind"
    max_new_tokens = 32

    def kind(self, item: Item) -> str:
        """Which kind of question of this task it is, "" for none."""
        raise NotImplementedError

    def parse(self, kind: str, text: str) -> Hashable | None:
        """What an answer says, None where it says nothing of the sort."""
        raise NotImplementedError

    def accepts(self, item: Item) -> bool:
        return bool(self.kind(item)) and self.truth(item) is not None

    def truth(self, item: Item) -> Hashable | None:
        """What the annotated answer says."""
        return self.parse(self.kind(item), markup.strip(item.reference))

    def read(self, item: Item, answer: Answer) -> Hashable | None:
        return self.parse(self.kind(item), answer.text)

    def invalid(self, item: Item, prediction: Hashable | None) -> bool:
        return prediction is None

    def drawn(self, prediction: Hashable | None) -> list[tuple[str, np.ndarray]]:
        return []

    def right(self, item: Item, prediction: Hashable | None) -> bool:
        return prediction == self.truth(item)

    def score(self, items: Sequence[Item], predictions: Sequence[Hashable | None]) -> Scores:
        right: dict[str, list[bool]] = {}
        for item, prediction in zip(items, predictions, strict=True):
            right.setdefault(self.kind(item), []).append(self.right(item, prediction))
        yield "accuracy", float(np.mean([hit for hits in right.values() for hit in hits]))
        if len(right) > 1:
            yield from ((kind, float(np.mean(right[kind]))) for kind in sorted(right))

    def strategies(self, items: Sequence[Item]) -> Iterator[list[Hashable | None]]:
        known: dict[str, Counter[Hashable | None]] = {}
        for item in items:
            known.setdefault(self.kind(item), Counter())[self.truth(item)] += 1
        yield [known[self.kind(item)].most_common(1)[0][0] for item in items]


class Vqa(Fact):
    """What colour a thing has, how many there are, and how two things stand to each other (said,
    or yes or no)."""

    name = "vqa"
    scenes = {"tasks": "attribute*5+count+relation*1.5"}

    def kind(self, item: Item) -> str:
        task = item.record.get("task")
        if task == "attribute":
            return "color" if item.record.get("aspect") == "color" else ""
        return task if task in ("count", "relation", "relation_yes_no") else ""

    def parse(self, kind: str, text: str) -> Hashable | None:
        if kind == "color":
            return _only(language.parse_colors(text))
        if kind == "count":
            return language.parse_number(text)
        return yes_no(text) if kind == "relation_yes_no" else _first(_SIDES, text)


class Reading(Fact):
    """The word that is printed on a thing, by the size of the thing; words are in capitals."""

    name = "reading"
    scenes = {"tasks": "read"}

    def kind(self, item: Item) -> str:
        if item.record.get("task") != "read" or not item.record.get("answer"):
            return ""
        known, number = item.example.meta.get("objects"), item.record.get("object")
        one = known[number] if isinstance(known, list) and isinstance(number, int) else {}
        return str(one.get("size", "word"))

    def parse(self, kind: str, text: str) -> Hashable | None:
        return _only(list(dict.fromkeys(re.findall(r"\b[A-Z]{2,}\b", text))))


class Moved(Fact):
    """What moves in a video: all that does and nothing else, colours and shapes."""

    name, needs = "moved", "videos"
    scenes = {"tasks": "moved", "frames": 8}
    max_new_tokens = 48

    def kind(self, item: Item) -> str:
        return "moved" if item.record.get("task") == "moved" else ""

    def parse(self, kind: str, text: str) -> Hashable | None:
        things = tuple(sorted(language.parse_things(text)))
        return things if things or re.match(r"\W*nothing\b", text, re.IGNORECASE) else None


class Direction(Fact):
    """Where a thing of a video moves to, or that it does not."""

    name, needs = "direction", "videos"
    scenes = {"tasks": "direction", "frames": 8}

    def kind(self, item: Item) -> str:
        return "direction" if item.record.get("task") == "direction" else ""

    def parse(self, kind: str, text: str) -> Hashable | None:
        return "none" if _STAYS.search(text) else _first(_WAYS, text)


def _only(found: Sequence[str]) -> str | None:
    """What was found, where it is one."""
    return found[0] if len(found) == 1 else None


def _first(words: dict[str, str], text: str) -> str | None:
    """The meaning of the first of `words` in a text."""
    return next((words[w] for w in re.findall(r"\w+", text.lower()) if w in words), None)

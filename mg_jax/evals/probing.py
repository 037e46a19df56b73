"""POPE's questions (arXiv 2305.10355) about any annotated pictures or scenes: is it there?

Of each picture up to three things that are there, and of each kind as many that are not: "random",
"popular" (what most pictures of the data have), "adversarial" (what goes along most often with what
is there). `pope` scores its published files.
"""

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mg_jax.answer import Answer
from mg_jax.data.tasks.base import absent_names, present_names
from mg_jax.evals import asking, metrics, pope
from mg_jax.evals.base import Scores, Task
from mg_jax.evals.questions import Item, collect, is_scenes, yes_no
from mg_jax.example import Turn

KINDS = ("random", "popular", "adversarial")
MOST = 3  # things of a picture that are there


class Pope(Task):
    """Accuracy, precision, recall, F1 and share of "yes" of each kind, and their means over the
    kinds; the headline is mean F1.

    What is there is asked once and counts in every kind; so does what several kinds draw.
    """

    name, headline = "pope", "f1"
    rule = "always yes, or always no"
    scenes = {"tasks": "none"}
    max_new_tokens = 32

    def items(
        self, data: str, limit: int | None = None, problems: list[str] | None = None
    ) -> list[Item]:
        """As `Task.items`; frequencies are those of all the data, of `n` scenes."""
        pictures = collect(data, self.accepts, self.scenes, False, problems=problems)
        there = [present_names(item.example) for item in pictures]
        if is_scenes(data):  # everything that is drawn is annotated
            every = dict.fromkeys(name for names in there for name in names)
            lacking = [[name for name in every if name not in names] for names in there]
            limit = min(len(pictures), limit or len(pictures))
        else:
            lacking = [list(absent_names(item.example)) for item in pictures]
        keys = [item.example.id for item in pictures]
        found: list[Item] = []
        for item, asked in zip(pictures, probes(keys, there, lacking), strict=True):
            questions = [asking.is_there(name, truth) for name, truth, _ in asked]
            example = replace(item.example, turns=tuple(Turn(*q) for q in questions))
            for turn, (name, truth, kinds) in enumerate(asked):
                record = {"task": self.name, "name": name, "there": truth, "kinds": kinds}
                found.append(Item(f"{example.id}/{turn}", example, turn, record))
        return found[:limit]

    def accepts(self, item: Item) -> bool:
        return True

    def read(self, item: Item, answer: Answer) -> bool | None:
        return yes_no(answer.text)

    def invalid(self, item: Item, prediction: bool | None) -> bool:
        return prediction is None

    def drawn(self, prediction: bool | None) -> list[tuple[str, np.ndarray]]:
        return []

    def right(self, item: Item, prediction: bool | None) -> bool:
        return prediction is item.record["there"]

    def score(self, items: Sequence[Item], predictions: Sequence[bool | None]) -> Scores:
        found = {}
        for kind in KINDS:
            pairs = [
                (p, bool(i.record["there"]))
                for i, p in zip(items, predictions, strict=True)
                if kind in i.record["kinds"]
            ]
            if pairs:
                found[kind] = metrics.yes_no([p for p, _ in pairs], [t for _, t in pairs])
        yield from pope.average(found).items()
        for kind, numbers in found.items():
            yield from ((f"{name}/{kind}", numbers[name]) for name in pope.NAMES)

    def strategies(self, items: Sequence[Item]) -> Iterator[list[bool | None]]:
        yield [True] * len(items)
        yield [False] * len(items)


Probe = tuple[str, bool, tuple[str, ...]]


def probes(
    keys: Sequence[str], there: Sequence[Sequence[str]], lacking: Sequence[Sequence[str]]
) -> list[list[Probe]]:
    """(name, whether it is there, kinds that it counts in) of each picture.

    keys: ids of the pictures, which alone decide what is drawn. there: names in each, lacking:
    names that are certainly not in it. Names that are equally frequent go by the alphabet. A
    picture without either has no question.
    """
    count = Counter(name for names in there for name in set(names))
    together: dict[str, Counter[str]] = {}
    for names in there:
        for name in set(names):
            together.setdefault(name, Counter()).update(set(names) - {name})
    out = []
    for key, present, missing in zip(keys, there, lacking, strict=True):
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        most = min(MOST, len(present), len(missing))
        right = [present[k] for k in rng.permutation(len(present))[:most]]
        beside = sum((together[name] for name in present), Counter[str]())
        chosen = {
            "random": [missing[k] for k in rng.permutation(len(missing))[:most]],
            "popular": _top(missing, count)[:most],
            "adversarial": _top(missing, beside)[:most],
        }
        asked: list[Probe] = []
        for n, name in enumerate(right):
            asked.append((name, True, KINDS))
            for wrong in dict.fromkeys(names[n] for names in chosen.values()):
                if not any(wrong == other for other, _, _ in asked):
                    kinds = tuple(k for k in KINDS if wrong in chosen[k])
                    asked.append((wrong, False, kinds))
        out.append(asked)
    return out


def _top(names: Sequence[str], count: Mapping[str, int]) -> list[str]:
    return sorted(names, key=lambda name: (-count.get(name, 0), name))

"""A conversation while it is being written, and what the task builders ask an Example."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.text import markup
from mg_jax.text.instructions import Instructions
from mg_jax.text.markup import ABSENT
from mg_jax.text.words import noun, without_article

# A task writes a conversation about an annotated example, or returns None where the example has
# no annotation for it. All that is random comes from the generator.
Task = Callable[[Example, np.random.Generator, Instructions], Example | None]

ROUNDS = 10  # at most so many rounds of one task in a conversation, as Groma has for Visual Genome
DENSE = 10  # objects of a dense question: Ferret-v2 has about ten a sample
# Share of the questions of rec and all_instances that ask for something that is not there, where
# the example affords both. Groma has none, and so always gives a box.
NEGATIVES = 0.2


class Talk:
    """The turns about one example. regions: what they point at so far, and nothing else.

    records: for every turn its task, whether it asks for something absent, and the regions of its
    answer (targets) and question (refers), as evaluation takes them.
    """

    def __init__(self, example: Example):
        self.example = example
        self.regions: list[Region] = []
        self.turns: list[Turn] = []
        self.records: list[dict[str, Any]] = []

    def index(self, region: Region) -> int:
        """The number of a region, which is added on first use."""
        if region not in self.regions:
            self.regions.append(region)
        return self.regions.index(region)

    def mark(self, *regions: Region) -> str:
        """`<r:0><r:1>` for regions."""
        return "".join(f"<r:{self.index(region)}>" for region in regions)

    def move(self, text: str, regions: tuple[Region, ...]) -> str:
        """A text whose marks count in `regions`, with marks that count in this conversation.

        Raises BadRecord for a mark of a region that is not there.
        """
        try:
            markup.check(text, len(regions), f"example {self.example.id!r}")
        except UserError as e:
            raise BadRecord(str(e)) from None
        out = []
        for s in markup.parse(text):
            out.append(replace(s, regions=tuple(self.index(regions[k]) for k in s.regions)))
        return markup.format(out)

    def say(
        self,
        task: str,
        user: str,
        assistant: str,
        absent: bool = False,
        about: Sequence[Region] | None = None,
        landmark: Region | None = None,
    ) -> bool:
        """Add a turn. False, and nothing added, when this was asked before.

        about, landmark: what the answer rests on, and that of it which the rest is placed by.
        """
        if any(turn.user == user for turn in self.turns):
            return False
        rests = None if about is None else tuple(self.index(region) for region in about)
        placed_by = () if landmark is None else (self.index(landmark),)
        self.turns.append(Turn(user, assistant, rests, placed_by))
        self.records.append(
            {
                "task": task,
                "absent": absent,
                "targets": list(dict.fromkeys(markup.regions_of(assistant))),
                "refers": list(dict.fromkeys(markup.regions_of(user))),
            }
        )
        return True

    def deny(
        self, task: str, rng: np.random.Generator, words: Instructions, phrase: str, name: str
    ) -> bool:
        """Ask where `phrase` is, which is not there; name: the same without article."""
        user = words.draw(task, rng, f"<p>{phrase}</p>")
        answer = ABSENT[rng.integers(len(ABSENT))].replace("{}", name)
        return self.say(f"{task}_absent", user, answer, absent=True)

    def done(self) -> Example | None:
        """The example with this conversation, None when nothing was said."""
        if not self.turns:
            return None
        meta = {**self.example.meta, "task": self.records[0]["task"], "turns": self.records}
        return replace(
            self.example, turns=tuple(self.turns), regions=tuple(self.regions), meta=meta
        )


def classes(example: Example) -> dict[str, list[Region]]:
    """The objects by the noun of their label, each class whole.

    A class is left out where its boxes are known not to be all: when a crowd is labelled with it,
    or when `meta["not_exhaustive"]` names it (LVIS says so of single pictures).
    """
    found: dict[str, list[Region]] = {}
    seen = set()
    for region in example.objects:
        name = noun(region.label)
        if name and (name, region.box) not in seen:
            seen.add((name, region.box))
            found.setdefault(name, []).append(region)
    partial = [r.label for r in example.crowd] + list(example.meta.get("not_exhaustive", ()))
    for label in partial:
        found.pop(noun(label) or "", None)
    return found


def named(example: Example) -> list[tuple[str, Region]]:
    """(noun, region) of everything that has a label, objects first, no place twice."""
    out, seen = [], set()
    for region in (*example.objects, *example.regions):
        name = noun(region.label)
        if name and region.box not in seen:
            seen.add(region.box)
            out.append((name, region))
    return out


def labelled(example: Example) -> Example:
    """The example with a label for every box that texts alone name, as those of Flickr30k Entities:
    an expression of that box alone, else a phrase of a caption, without its article.

    A phrase of several boxes ("two dogs") is the name of none of them.
    """
    if all(noun(r.label) for r in (*example.objects, *example.regions)):
        return example
    names = {region.box: name for name, region in reversed(named(example))}
    texts = [(e.text, e.regions) for e in example.expressions]
    texts += [(s.text, s.regions) for c in example.captions for s in markup.parse(c)]
    for text, regions in texts:
        name = noun(without_article(text.strip()))
        if name and len(regions) == 1:
            names.setdefault(example.regions[regions[0]].box, name)

    def called(regions: tuple[Region, ...]) -> tuple[Region, ...]:
        return tuple(
            r if noun(r.label) else replace(r, label=names.get(r.box, r.label)) for r in regions
        )

    return replace(example, objects=called(example.objects), regions=called(example.regions))


def present_names(example: Example) -> list[str]:
    """The nouns of everything that has a label, crowds included, each once."""
    everything = (*example.objects, *example.crowd, *example.regions)
    return list(dict.fromkeys(filter(None, (noun(r.label) for r in everything))))


def is_empty(example: Example) -> bool:
    """True when nothing at all is annotated in the picture."""
    return not (example.objects or example.crowd or example.regions)


def absent_names(example: Example) -> dict[str, float]:
    """Nouns that are certainly not in the picture, with their weights in a draw.

    They are `Example.absent` without whatever an annotation has after all. The weight is the
    number of pictures of the data set that show the thing (`meta["frequency"]`, by label), so
    that how common a thing is does not tell whether it is there; equal where that is not known.
    """
    there = set(present_names(example))
    frequency: Mapping[str, int] = example.meta.get("frequency") or {}
    weights: dict[str, float] = {}
    for label in example.absent:
        name = noun(label)
        if name and name not in there:
            weights[name] = weights.get(name, 0.0) + frequency.get(label, 0)
    if not any(weights.values()):
        return dict.fromkeys(weights, 1.0)
    return weights


def draw(weights: Mapping[str, float], rng: np.random.Generator) -> str:
    """One of the names, in proportion to the weights."""
    names, values = list(weights), np.fromiter(weights.values(), float, len(weights))
    return names[rng.choice(len(names), p=values / values.sum())]


def numbered(parts: list[str]) -> str:
    """ "1: cat, 2: dog", as Ferret-v2 counts."""
    return ", ".join(f"{n}: {part}" for n, part in enumerate(parts, 1))


def shuffled(items: Any, rng: np.random.Generator) -> list[Any]:
    """The items in random order."""
    items = list(items)
    return [items[k] for k in rng.permutation(len(items))]

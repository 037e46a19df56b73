"""Tasks with object images, TinyGroundingGPT's stages 2 and 3 (spec 4), and its descriptions.

Boxes without a label go by what texts call them, where a name is needed (`base.labelled`).

    object_match          an object image to its coordinates
    place_choice          coordinates to one of several object images, by letter
    name_choice           a text to one of several object images, by letter
    object_relation       how objects relate, object images in place of their names
    grounding_dialogue    several rounds that point with words, coordinates and object images
    grounded_description  everything that is named has its coordinates

The other two of its stage 2, text to coordinates and back, are `rec` and `region_caption`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_uppercase

import numpy as np

from mg_jax.data.tasks.asking import Links, dialogue
from mg_jax.data.tasks.base import Talk, Task, labelled, named, shuffled
from mg_jax.data.tasks.filters import Filters, area
from mg_jax.data.tasks.locating import expressions
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Region
from mg_jax.text import markup, words
from mg_jax.text.instructions import Instructions

OPTIONS = 4  # of a choice, fewer where the picture has no more
MOST_SHOWN = 4  # object images of a dialogue
MOST_DESCRIBED = 12  # things of a description, the largest
MOST_RELATED = 3  # relations that a description tells
OPPOSITE = {
    "to the left of": "to the right of", "to the right of": "to the left of",
    "above": "below", "below": "above",
}  # fmt: skip


def lettered(options: Sequence[str], where: str = "choice") -> str:
    """ "A. ..." lines. Raises BadRecord, beginning with `where`, for less than two options."""
    if not 2 <= len(options) <= len(ascii_uppercase):
        raise BadRecord(
            f"{where}: {len(options)} option{'s' * (len(options) != 1)}: a choice needs "
            f"2 to {len(ascii_uppercase)}"
        )
    return "\n".join(f"{letter}. {text}" for letter, text in zip(ascii_uppercase, options))  # noqa: B905


@dataclass(frozen=True)
class ObjectTasks:
    """The tasks, for thresholds of one's own. drops: gets what each filter left out, by reason.
    options: of a choice, where the picture has as many."""

    filters: Filters = Filters()
    drops: Counter[str] = field(default_factory=Counter)
    options: int = OPTIONS

    def __post_init__(self):
        if not 2 <= self.options <= len(ascii_uppercase):
            raise UserError(f"options={self.options}: a choice has 2 to {len(ascii_uppercase)}")

    @property
    def tasks(self) -> dict[str, Task]:
        """The tasks by name."""
        return {name: getattr(self, name) for name in NAMES}

    def object_match(
        self, example: Example, rng: np.random.Generator, wording: Instructions
    ) -> Example | None:
        """Where is the thing whose image is shown?"""
        talk = Talk(example)
        if there := self._shown(example):
            region = there[rng.integers(len(there))]
            user = wording.draw("object_match", rng, image(talk, region))
            talk.say("object_match", user, talk.mark(region))
        return talk.done()

    def place_choice(
        self, example: Example, rng: np.random.Generator, wording: Instructions
    ) -> Example | None:
        """Which object image is at these coordinates? Needs two things apart from each other."""
        talk = Talk(example)
        order = shuffled(self._shown(example), rng)
        for n, region in enumerate(order):
            others = order[:n] + order[n + 1 :]
            options = self.filters.apart(region, others, self.options, self.drops)
            question = wording.draw("place_choice", rng, talk.mark(region))
            if self._choose(talk, rng, wording, "place_choice", question, region, options):
                return talk.done()
            talk = Talk(example)
        return None

    def name_choice(
        self, example: Example, rng: np.random.Generator, wording: Instructions
    ) -> Example | None:
        """Which object image shows what the text names? An expression of that thing alone, else a
        class with one member; the other options have other names where the question is a name."""
        example = labelled(example)
        there = self._shown(example)
        things = self.filters.named(named(example), self.drops)
        names = {region.box: name for name, region in reversed(things)}
        count = Counter(name for name, _ in named(example))
        asked = [
            (text, places[0], False)
            for text, places in expressions(example).items()
            if len(places) == 1
        ]
        asked += [(words.a(name), r, True) for name, r in things if count[name] == 1]
        boxes = {region.box for region in there}
        for text, region, by_name in shuffled([a for a in asked if a[1].box in boxes], rng):
            talk = Talk(example)
            others = [r for r in shuffled(there, rng) if r.box != region.box]
            if by_name:  # what has no name may be another one
                others = [r for r in others if r.box in names]
            options = self.filters.apart(region, others, self.options, self.drops)
            question = wording.draw("name_choice", rng, text)
            if self._choose(talk, rng, wording, "name_choice", question, region, options):
                return talk.done()
        return None

    def object_relation(
        self, example: Example, rng: np.random.Generator, wording: Instructions
    ) -> Example | None:
        """Which thing stands in a relation to another, how two relate, or whether they do.

        The things are object images where they make one, else their coordinates. Relations as
        annotated, else by side; a yes or no is asked of sides alone, whose opposite is known.
        """
        example = self._sure(labelled(example))
        links, there = Links(example, rng), self._shown(example)
        boxes = {region.box for region in there}
        kinds: list[Callable[..., Example | None]] = [self._which, self._how]
        if not links.annotated:
            kinds.append(self._whether)
        for one, predicate, other in shuffled(links.all, rng)[:_TRIED]:
            if one.box in boxes or other.box in boxes:
                for ask in shuffled(kinds, rng):
                    made = ask(example, rng, wording, links, there, (one, predicate, other))
                    if made:
                        return made
        return None

    def grounding_dialogue(
        self, example: Example, rng: np.random.Generator, wording: Instructions
    ) -> Example | None:
        """A dialogue from region to region in which half of the regions that a question points at
        are shown as images, up to MOST_SHOWN."""
        made = dialogue(self._sure(labelled(example)), rng, wording)
        if made is None:
            return None
        regions = made.regions
        asked = some_shown(
            [turn.user for turn in made.turns], rng, lambda k: not self._dropped(regions[k])
        )
        turns = [replace(t, user=user) for t, user in zip(made.turns, asked, strict=True)]
        records = [r | {"task": "grounding_dialogue"} for r in made.meta["turns"]]
        meta = {**made.meta, "task": "grounding_dialogue", "turns": records}
        return replace(made, turns=tuple(turns), meta=meta)

    def grounded_description(
        self, example: Example, rng: np.random.Generator, wording: Instructions
    ) -> Example | None:
        """The largest things that have a name, each with its box; then some relations."""
        example = labelled(example)
        talk = Talk(example)
        things = self.filters.named(named(example), self.drops)
        things.sort(key=lambda thing: -area(thing[1]))
        if not things:
            return None
        told, seen = [], set()
        for name, region in things[:MOST_DESCRIBED]:
            article = "another" if name in seen else words.a(name).removesuffix(f" {name}")
            told.append(f"{article} <p>{name}</p>{talk.mark(region)}")
            seen.add(name)
        text = f"The image shows {_listed(told)}."
        names = {region.box: name for name, region in things[:MOST_DESCRIBED]}
        links = Links(example, rng)
        among = [x for x in links.all if x[0].box in names and x[2].box in names]
        for one, predicate, other in shuffled(among, rng)[:MOST_RELATED]:
            be = "" if links.annotated else " is"
            first, second = (f"<p>{names[r.box]}</p>{talk.mark(r)}" for r in (one, other))
            text += f" The {first}{be} {predicate} the {second}."
        talk.say("grounded_description", wording.draw("grounded_description", rng), text)
        return talk.done()

    def _shown(self, example: Example) -> list[Region]:
        return self.filters.shown((*example.objects, *example.regions), self.drops)

    def _sure(self, example: Example) -> Example:
        """The picture without boxes of low confidence and the relations of those."""
        unsure = self.filters.why_not_sure
        low = {r.box for r in (*example.objects, *example.regions) if unsure(r)}
        if not low:
            return example
        self.drops["low confidence"] += len(low)
        kept = [k for k, region in enumerate(example.regions) if not unsure(region)]
        number = {k: n for n, k in enumerate(kept)}
        relations = tuple(
            (number[a], said, number[b])
            for a, said, b in example.relations
            if a in number and b in number
        )
        return replace(
            example,
            objects=tuple(region for region in example.objects if not unsure(region)),
            regions=tuple(example.regions[k] for k in kept),
            relations=relations,
        )

    def _dropped(self, region: Region) -> bool:
        why = self.filters.why_not_shown(region)
        if why:
            self.drops[why] += 1
        return why is not None

    def _choose(
        self,
        talk: Talk,
        rng: np.random.Generator,
        wording: Instructions,
        task: str,
        question: str,
        right: Region,
        options: Sequence[Region],
        landmark: Region | None = None,
    ) -> bool:
        """Ask for one of several object images; False, and a drop, where there is no choice.

        landmark: what it is placed by in the question.
        """
        if len(options) < 2:
            self.drops["too few options"] += 1
            return False
        order = shuffled(options, rng)
        listed = lettered([image(talk, r) for r in order])
        letter = ascii_uppercase[order.index(right)]
        user = wording.draw("choice", rng, f"{question}\n{listed}")
        about = None if landmark is None else (right, landmark)
        talk.say(task, user, letter, about=about, landmark=landmark)
        talk.records[-1]["options"] = len(order)
        return True

    def _which(self, example, rng, wording, links, there, link) -> Example | None:
        one, predicate, other = link
        talk = Talk(example)
        if one.box not in {r.box for r in there}:
            return None
        related = {a.box for a, p, b in links.all if (p, b.box) == (predicate, other.box)}
        others = [r for r in shuffled(there, rng) if r.box not in related | {other.box}]
        if not links.annotated:  # nothing is offered that lies partly on that side
            clear = {
                a.box for a, p, b in links.all if (p, b.box) == (OPPOSITE[predicate], other.box)
            }
            others = [r for r in others if r.box in clear]
        options = self.filters.apart(one, others, self.options, self.drops)
        question = wording.draw(
            "related", rng, self._pointed(talk, rng, other), predicate=predicate
        )
        asked = self._choose(talk, rng, wording, "object_relation", question, one, options, other)
        return talk.done() if asked else None

    def _how(self, example, rng, wording, links, there, link) -> Example | None:
        one, predicate, other = link
        talk = Talk(example)
        holds = {p for a, p, b in links.all if (a.box, b.box) == (one.box, other.box)}
        known = {p for _, p, _ in links.all} if links.annotated else set(OPPOSITE)
        wrong = shuffled(sorted(known - holds), rng)[: self.options - 1]
        if not wrong:
            self.drops["too few options"] += 1
            return None
        order = shuffled([predicate, *wrong], rng)
        question = self._about(talk, rng, wording, "relation", one, other)
        user = wording.draw("choice", rng, f"{question}\n{lettered(order)}")
        letter = ascii_uppercase[order.index(predicate)]
        talk.say("object_relation", user, letter, about=(one, other), landmark=other)
        talk.records[-1]["options"] = len(order)
        return talk.done()

    def _whether(self, example, rng, wording, links, there, link) -> Example | None:
        one, predicate, other = link
        talk = Talk(example)
        yes = bool(rng.random() < 0.5)
        said = predicate if yes else OPPOSITE[predicate]
        user = self._about(talk, rng, wording, "relation_yes_no", one, other, predicate=said)
        answer = "Yes" if yes else "No"
        talk.say("object_relation", user, answer, about=(one, other), landmark=other)
        return talk.done()

    def _about(self, talk, rng, wording, key, one, other, **parts) -> str:
        """A question about two things of which one at least is shown."""
        order = [one, other] if rng.random() < 0.5 else [other, one]
        first = next((r for r in order if self.filters.why_not_shown(r) is None), one)
        marks = {
            r.box: image(talk, r) if r is first else self._pointed(talk, rng, r) for r in order
        }
        text: str = wording.draw(key, rng, marks[one.box], other=marks[other.box], **parts)
        return text

    def _pointed(self, talk: Talk, rng: np.random.Generator, region: Region) -> str:
        """The region as an object image, which is likelier, or as coordinates."""
        if rng.random() < 0.25 or self._dropped(region):
            return talk.mark(region)
        return image(talk, region)


_TRIED = 12  # relations of a picture that are tried until one makes a question
NAMES = (
    "object_match", "place_choice", "name_choice", "object_relation", "grounding_dialogue",
    "grounded_description",
)  # fmt: skip
# Those that ask for something by its name: they have nothing to say of boxes without names
NAMED = ("name_choice", "grounding_dialogue", "grounded_description")
# Those that offer up to `options` object images
CHOICES = ("place_choice", "name_choice", "object_relation")
OBJECT_TASKS = ObjectTasks().tasks


def image(talk: Talk, region: Region) -> str:
    """`<object:0>` for a region, which is added on first use."""
    return f"<object:{talk.index(region)}>"


def some_shown(
    texts: Iterable[str], rng: np.random.Generator, may: Callable[[int], bool]
) -> list[str]:
    """The questions of a dialogue with object images in place of half of the regions that `may`
    (by number) be shown, MOST_SHOWN in all."""
    left, out = MOST_SHOWN, []
    for text in texts:
        segments = markup.parse(text)
        for n, s in enumerate(segments):
            drawn = s.kind == "region" and left > 0 and rng.random() < 0.5
            if drawn and may(s.regions[0]):
                segments[n], left = replace(s, kind="object"), left - 1
        out.append(markup.format(segments))
    return out


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)

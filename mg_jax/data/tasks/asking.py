"""Tasks that are answered in a word or a sentence: presence, vqa, choice, relation, dialogue."""

from string import ascii_uppercase

import numpy as np

from mg_jax.data.tasks.base import (
    ROUNDS,
    Talk,
    absent_names,
    classes,
    draw,
    named,
    present_names,
    shuffled,
)
from mg_jax.example import Example, Question, Region
from mg_jax.text import words
from mg_jax.text.instructions import Instructions

SHORT = 10  # words up to which an answer counts as "a single word or phrase"
_COMPARED = 24  # things, drawn, of which every pair is looked at
_CLOSER = 1.25  # the second nearest thing is at least so many times as far as the nearest


def presence(example: Example, rng: np.random.Generator, wording: Instructions) -> Example | None:
    """Is it there? Yes and no equally often; needs a class that is there and a name that is not."""
    talk = Talk(example)
    there, missing = present_names(example), absent_names(example)
    if not there or not missing:
        return None
    if rng.random() < 0.5:
        name = there[rng.integers(len(there))]
        answer = wording.draw("presence_yes", rng, words.a(name))
    else:
        name = draw(missing, rng)
        answer = wording.draw("presence_no", rng, name)
    user = wording.draw("presence", rng, words.a(name))
    talk.say("presence", user, answer, absent=name in missing)
    return talk.done()


def vqa(example: Example, rng: np.random.Generator, wording: Instructions) -> Example | None:
    """The questions without choices, up to ROUNDS in random order, answered with their first
    answer. A hint stands before its question, and is not repeated.

    Short answers are asked for by LLaVA's prompt in the first round; longer ones (over SHORT
    words) without it, and never in one conversation with short ones.
    """
    talk = Talk(example)
    open_ended = [q for q in example.questions if not q.choices and "".join(q.answers[:1]).strip()]
    questions = shuffled(open_ended, rng)
    if not questions:
        return None
    short = _short(questions[0])
    hint = ""
    for q in [q for q in questions if _short(q) == short][:ROUNDS]:
        text = q.text if q.hint in ("", hint) else f"{q.hint}\n{q.text}"
        hint = q.hint or hint
        if short and not talk.turns:
            text = wording.draw("vqa", rng, text)
        regions = example.regions
        talk.say("vqa", talk.move(text, regions), talk.move(q.answers[0].strip(), regions))
    return talk.done()


def _short(question: Question) -> bool:
    return len(question.answers[0].split()) <= SHORT


def choice(example: Example, rng: np.random.Generator, wording: Instructions) -> Example | None:
    """A multiple choice, lettered in the given order and answered with the letter alone."""
    talk = Talk(example)
    letters = ascii_uppercase
    questions = [
        q
        for q in example.questions
        if 2 <= len(q.choices) <= len(letters) and q.answers and q.answers[0] in q.choices
    ]
    for q in shuffled(questions, rng)[:ROUNDS]:
        lines = [q.hint, q.text]
        lines += [f"{letter}. {text}" for letter, text in zip(letters, q.choices, strict=False)]
        user = wording.draw("choice", rng, "\n".join(filter(None, lines)))
        letter = letters[q.choices.index(q.answers[0])]
        talk.say("choice", talk.move(user, example.regions), letter)
    return talk.done()


def relation(example: Example, rng: np.random.Generator, wording: Instructions) -> Example | None:
    """How one thing relates to another that the question points at as well.

    As annotated; where nothing is, by the side of the one on which the other lies (see `side`).
    """
    talk = Talk(example)
    links = Links(example, rng)
    for one, predicate, other in shuffled(links.all, rng)[:1]:
        links.ask(talk, rng, wording, "relation", one, predicate, other)
    return talk.done()


def dialogue(example: Example, rng: np.random.Generator, wording: Instructions) -> Example | None:
    """Rounds that lead from region to region: what is this, what relates to it, what is nearest to
    it, where is one like that; every question points at a region or names a class, and answers
    point at the next region. None where there are less than two rounds in it."""
    talk = Talk(example)
    things, links = named(example), Links(example, rng)
    if len(things) < 2:
        return None
    name, here = things[rng.integers(len(things))]
    user = wording.draw("region_caption", rng, talk.mark(here))
    talk.say("dialogue", user, name.capitalize())
    alone = {n: r[0] for n, r in classes(example).items() if len(r) == 1}
    for _ in range(rng.integers(2, 5)):
        steps: list[tuple[str, str, Region]] = []
        near = nearest(things, here)
        if near is not None:
            steps.append(("nearest", "", near))
        steps += [("related", p, one) for one, p, _ in links.sole_to(here)]
        steps += [("relation", p, other) for one, p, other in links.all if one == here]
        steps += [("rec", n, r) for n, r in alone.items() if r.box != here.box]
        kinds = sorted({kind for kind, _, _ in steps})
        if not kinds:
            break
        kind = kinds[rng.integers(len(kinds))]
        _, text, there = shuffled([s for s in steps if s[0] == kind], rng)[0]
        if kind == "rec":
            user = wording.draw("rec", rng, f"<p>{text}</p>")
            said = talk.say("dialogue", user, wording.located(text, talk.mark(there)))
        elif kind == "nearest":
            user = wording.draw("nearest", rng, talk.mark(here))
            said = links.name(talk, user, there, here)
        elif kind == "related":
            user = wording.draw("related", rng, talk.mark(here), predicate=text)
            said = links.name(talk, user, there, here)
        else:
            said = links.ask(talk, rng, wording, "dialogue", here, text, there)
        here = there if said else here
    return talk.done() if len(talk.turns) > 1 else None


class Links:
    """The relations of a picture. all: (one, predicate, other) of regions."""

    def __init__(self, example: Example, rng: np.random.Generator):
        regions = example.regions
        self.names = {region.box: name for name, region in reversed(named(example))}
        self.all = [
            (regions[i], predicate, regions[k])
            for i, said, k in example.relations
            if i != k and (predicate := words.phrase(said))
        ]
        self.annotated = bool(self.all)
        if not self.annotated:
            things = [region for _, region in shuffled(named(example), rng)[:_COMPARED]]
            self.all = [
                (one, predicate, other)
                for one in things
                for other in things
                if (predicate := side(one, other))
            ]

    def sole_to(self, other: Region) -> list[tuple[Region, str, Region]]:
        """The annotated relations to a region that nothing else stands in."""
        if not self.annotated:
            return []
        here = [link for link in self.all if link[2] == other]
        predicates = [predicate for _, predicate, _ in here]
        return [link for link in here if predicates.count(link[1]) == 1]

    def mention(self, talk: Talk, region: Region) -> str:
        """`<p>dog</p><r:1>`, or the region alone where it has no name."""
        name = self.names.get(region.box)
        return (f"<p>{name}</p>" if name else "") + talk.mark(region)

    def name(self, talk: Talk, user: str, one: Region, other: Region) -> bool:
        """Say of a dialogue's question that it is `one` that stands so to `other`."""
        answer = f"{self.mention(talk, one)}."
        return talk.say("dialogue", user, answer, about=(one, other), landmark=other)

    def ask(
        self,
        talk: Talk,
        rng: np.random.Generator,
        wording: Instructions,
        task: str,
        one: Region,
        predicate: str,
        other: Region,
    ) -> bool:
        """Ask how `one` relates to `other`; False when that was asked before."""
        user = wording.draw("relation", rng, talk.mark(one), other=talk.mark(other))
        answer = f"{self.mention(talk, one)} {predicate} {self.mention(talk, other)}."
        return talk.say(task, user, answer, about=(one, other), landmark=other)


def side(one: Region, other: Region) -> str | None:
    """On which side of `other` the whole of `one` lies, None where it is on none or on two."""
    a, b = one.box, other.box
    across = "to the left of" if a[2] <= b[0] else "to the right of" if b[2] <= a[0] else None
    down = "above" if a[3] <= b[1] else "below" if b[3] <= a[1] else None
    return (across or down) if not (across and down) else None


def nearest(things: list[tuple[str, Region]], here: Region) -> Region | None:
    """The thing whose centre is nearest to that of `here`, if it is clearly the nearest."""
    x, y = here.box[0] + here.box[2], here.box[1] + here.box[3]
    far = sorted(
        (np.hypot(r.box[0] + r.box[2] - x, r.box[1] + r.box[3] - y), n)
        for n, (_, r) in enumerate(things)
        if r.box != here.box
    )
    if len(far) < 2 or far[1][0] < _CLOSER * far[0][0]:
        return None
    return things[far[0][1]][1]

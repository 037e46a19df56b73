"""Questions and answers about a scene, one function a task, as turns of an `Example`.

Every task takes a `Talk`, adds one turn (a dialogue several) and returns True, or returns False
where the scene has nothing to ask that way.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from mg_jax.data.scenes import language as lang
from mg_jax.data.scenes.expressions import absent_query, anchor_query, unique_expression
from mg_jax.data.scenes.language import Query, full_query
from mg_jax.data.scenes.world import World
from mg_jax.example import Region, Turn
from mg_jax.text.instructions import GROUNDING, INSTRUCTIONS
from mg_jax.text.instructions.ferret import which
from mg_jax.text.markup import ABSENT


class Talk:
    """A conversation about one scene while it is being written.

    regions, turns: as of `Example`. records: for every turn, what evaluation needs to know.
    named: questions that could point at a thing or name it name it; shown: they point at it.
    """

    def __init__(self, world: World, rng: random.Random, named: bool = False, shown: bool = False):
        self.world, self.rng, self.named, self.shown = world, rng, named, shown
        self.things = world.things
        self.regions: list[Region] = []
        self.turns: list[Turn] = []
        self.records: list[dict[str, Any]] = []
        self._boxes: dict[int, int] = {}

    def box(self, i: int) -> int:
        """The index of the region that is thing i's box; added on first use."""
        if i not in self._boxes:
            thing = self.things[i]
            self._boxes[i] = self.add(Region.from_box(thing.box, label=thing.name))
        return self._boxes[i]

    def add(self, region: Region) -> int:
        """The index of a new region."""
        self.regions.append(region)
        return len(self.regions) - 1

    def coin(self) -> bool:
        """Fair over the scenes: by the scene's number at first, so that any run of scenes is
        balanced, by chance in later turns."""
        return self.world.index % 2 == 0 if not self.turns else self.rng.random() < 0.5

    def say(
        self,
        task: str,
        user: str,
        assistant: str,
        answer: str,
        about: Sequence[int] | None = None,
        landmark: int | None = None,
        **record: Any,
    ) -> bool:
        """Add a turn. False, and nothing added, when this was asked before.

        about: the things that the answer rests on, by default those of `record`; landmark: that of
        them which the others are placed by, by default `other` of a record with an `object`.
        """
        if any(turn.user == user for turn in self.turns):
            return False
        if about is None and record.get("object") is not None:
            landmark = record.get("other")
            about = [i for i in (record["object"], landmark) if i is not None]
        elif about is None:
            about = record.get("objects", () if record.get("absent") else None)
        seen = None if about is None else tuple(self.box(i) for i in about)
        placed_by = () if landmark is None else (self.box(landmark),)
        self.turns.append(Turn(user, assistant, seen, placed_by))
        known = {"task": task, "answer": answer, "absent": False, "targets": [], "object": None}
        self.records.append({**known, **record})
        return True

    def pick(self) -> int:
        """A thing, drawn."""
        return self.rng.randrange(len(self.things))

    def marks(self, things: list[int]) -> str:
        """`<r:0><r:1>` for things."""
        return "".join(f"<r:{self.box(i)}>" for i in things)


def left_to_right(world: World, things: list[int]) -> list[int]:
    """Things ordered by the centre of their boxes, left to right."""
    return sorted(things, key=lambda i: (world.things[i].center, i))


_REC = (
    *INSTRUCTIONS["rec"],
    "Where is {}?",
    "Find {}.",
    "Show me {}.",
    "Point to {}.",
)
_ALL = (
    *INSTRUCTIONS["all_instances"],
    "Find all {}.",
    "Show me every one of the {}.",
)


def fill(rng: random.Random, texts: tuple[str, ...], thing: str) -> str:
    """One of the texts with the thing put in at `{}`."""
    return rng.choice(texts).replace("{}", thing)


def _rivals(world: World, i: int) -> dict[str, Any]:
    thing = world.things[i]
    rest = [t for k, t in enumerate(world.things) if k != i]
    return {
        "same_shape": sum(t.shape == thing.shape for t in rest),
        "same_color": sum(t.color == thing.color for t in rest),
        "objects": len(world.things),
    }


def rec(talk: Talk) -> bool:
    """Locate the one thing that an expression fits; things with rivals are preferred."""
    order = list(range(len(talk.things)))
    talk.rng.shuffle(order)
    rivals = {i: _rivals(talk.world, i) for i in order}
    order.sort(key=lambda i: not (rivals[i]["same_shape"] or rivals[i]["same_color"]))
    for i in order[:6]:
        found = unique_expression(talk.world, i, talk.rng)
        if found is None:
            continue
        the = "the " if talk.rng.random() < 0.6 else ""
        user = fill(talk.rng, _REC, f"<p>{the}{found.text}</p>")
        return talk.say(
            "rec",
            user,
            f"<r:{talk.box(i)}>",
            found.text,
            targets=[talk.box(i)],
            object=i,
            style=found.style,
            **rivals[i],
        )
    return False


def _absence(rng: random.Random, noun: str) -> str:
    return rng.choice(ABSENT[:2] if rng.random() < 0.8 else ABSENT).format(noun)


def rec_absent(talk: Talk) -> bool:
    """Locate something that is not there."""
    kinds = "color shape|color shape|color shape|shape|word|color texture shape"
    query = absent_query(talk.world, talk.rng, kinds)
    text = query.noun(talk.rng)
    the = "the " if talk.rng.random() < 0.6 else ""
    user = fill(talk.rng, _REC, f"<p>{the}{text}</p>")
    return talk.say("rec_absent", user, _absence(talk.rng, text), "absent", absent=True)


def _ask_all(rng: random.Random, query: Query) -> tuple[str, str]:
    """(question for all that match, the noun in the singular)."""
    one, many = query.nouns(rng)
    text = rng.choice(_ALL)
    return text.replace("{}", f"<p>{one if 'each {}' in text else many}</p>"), one


def all_instances(talk: Talk) -> bool:
    """Locate everything of a class: a shape, a colour, or both; larger classes are preferred."""
    thing = talk.things[talk.pick()]
    queries = [full_query(thing, k) for k in ("shape", "shape", "color shape", "color")]
    talk.rng.shuffle(queries)
    if talk.rng.random() < 0.7:
        queries.sort(key=lambda q: -min(len(q.find(talk.world)), 2))
    found = left_to_right(talk.world, queries[0].find(talk.world))
    user, _ = _ask_all(talk.rng, queries[0])
    return talk.say(
        "all_instances",
        user,
        talk.marks(found),
        queries[0].noun(many=True),
        targets=[talk.box(i) for i in found],
        objects=found,
    )


def all_instances_absent(talk: Talk) -> bool:
    """Locate everything of a class that has no member."""
    query = absent_query(talk.world, talk.rng, "color shape|shape|shape|color")
    user, noun = _ask_all(talk.rng, query)
    answer = _absence(talk.rng, noun)
    return talk.say("all_instances_absent", user, answer, "absent", absent=True)


def _mark_of(talk: Talk, i: int, kind: str) -> int | None:
    """A region that points at thing i the way a user would: a box, a point or a scribble on it, or
    the mask of what is seen of it."""
    if kind == "box":
        return talk.box(i)
    thing, world = talk.things[i], talk.world
    if kind == "mask":
        return talk.add(Region.from_mask(world.mask(i)))
    x0, y0 = round(thing.box[0] * world.width), round(thing.box[1] * world.height)
    x1, y1 = round(thing.box[2] * world.width), round(thing.box[3] * world.height)
    inside = world.ids[y0:y1, x0:x1] == i + 1
    rows, cols = inside.nonzero()

    def at(k: int) -> tuple[float, float]:
        return (x0 + cols[k] + 0.5) / world.width, (y0 + rows[k] + 0.5) / world.height

    if kind == "point":
        return talk.add(Region.from_point(*at(talk.rng.randrange(len(rows)))))
    picks = sorted(talk.rng.randrange(len(rows)) for _ in range(24))[:: talk.rng.choice((2, 3))]
    points = [at(k) for k in picks]
    xs, ys = zip(*points, strict=True)
    if max(xs) - min(xs) < 0.02 or max(ys) - min(ys) < 0.02:
        return None
    return talk.add(Region.from_scribble(points))


def _region(talk: Talk, task: str, kind: str, detailed: bool) -> bool:
    i = talk.pick()
    k = _mark_of(talk, i, kind)
    if k is None:
        return False
    thing = talk.things[i]
    if detailed:
        answer = lang.detail(thing)
        place = lang.position(thing)
        text = lang.a(answer)
        text = text[0].upper() + text[1:] + (f" {lang.where(place)}" if place else "") + "."
        user = fill(talk.rng, INSTRUCTIONS["region_description"], f"<r:{k}>")
    else:
        answer = thing.name
        text = lang.a(answer).capitalize() + "."
        user = fill(talk.rng, INSTRUCTIONS["region_caption"], f"<r:{k}>")
    return talk.say(task, user, text, answer, object=i, refers=[k], kind=kind)


def region(talk: Talk) -> bool:
    """Name the thing in a box: colour and shape."""
    return _region(talk, "region", "box", False)


def region_detail(talk: Talk) -> bool:
    """Describe the thing in a box with size, texture, printed word and place."""
    return _region(talk, "region_detail", "box", True)


def point(talk: Talk) -> bool:
    """Name the thing under a point."""
    return _region(talk, "point", "point", False)


def scribble(talk: Talk) -> bool:
    """Name the thing under a scribble (a stroke through points on it)."""
    return _region(talk, "scribble", "scribble", False)


def mask(talk: Talk) -> bool:
    """Name the thing whose visible pixels are given."""
    return _region(talk, "mask", "mask", False)


def _which(talk: Talk, task: str, kind: str) -> bool:
    """One of two names, the other that of another thing where there is one of another name."""
    i = talk.pick()
    k = _mark_of(talk, i, kind)
    if k is None:
        return False
    name = talk.things[i].name
    others = sorted({thing.name for thing in talk.things} - {name})
    other = (
        talk.rng.choice(others)
        if others
        else absent_query(talk.world, talk.rng, "color shape").noun()
    )
    user = which(k, talk.rng.randrange(2), name, other)
    answer = f"{lang.a(name).capitalize()}."
    return talk.say(task, user, answer, name, object=i, refers=[k], kind=kind)


def which_box(talk: Talk) -> bool:
    """Ferret's test on LVIS: is the thing in a box the one or the other?"""
    return _which(talk, "which_box", "box")


def which_point(talk: Talk) -> bool:
    """The same about the thing under a point."""
    return _which(talk, "which_point", "point")


def which_free(talk: Talk) -> bool:
    """The same about the thing under a scribble, or whose pixels are given."""
    return _which(talk, "which_free", talk.rng.choice(("scribble", "mask")))


def object_match(talk: Talk) -> bool:
    """Find the thing whose crop is shown (`<object:k>`)."""
    i = talk.pick()
    k = talk.box(i)
    user = fill(
        talk.rng,
        (
            "Which region of the image shows the object {}?",
            "Find the object {} in the image.",
            "Where is the object {} in this picture?",
        ),
        f"<object:{k}>",
    )
    return talk.say("object_match", user, f"<r:{k}>", talk.things[i].name, targets=[k], object=i)


_PRESENCE = (
    "Is there {} in the image?",
    "Do you see {}?",
    "Does the picture show {}?",
    "Is {} visible here?",
    "Can you see {} in this picture?",
)


def presence(talk: Talk) -> bool:
    """Is it there? Yes and no equally often, asked with the same kinds of phrases."""
    kind = talk.rng.choice(("color shape", "color shape", "color shape", "shape", "shape", "color"))
    if talk.coin():
        query = full_query(talk.things[talk.pick()], kind)
    else:
        query = absent_query(talk.world, talk.rng, kind)
    found = query.find(talk.world)
    there = bool(found)
    user = fill(talk.rng, _PRESENCE, lang.a(query.noun(talk.rng)))
    noun = query.noun()
    text = f"Yes, there is {lang.a(noun)}." if there else f"No, there is no {noun} in the image."
    return talk.say("presence", user, text, "yes" if there else "no", found)


def count(talk: Talk) -> bool:
    """How many of a class; one time in eight there are none; sometimes grounded."""
    if talk.rng.random() < 0.125:
        query = absent_query(talk.world, talk.rng, "shape|color shape|color")
    else:
        thing = talk.things[talk.pick()]
        query = full_query(thing, talk.rng.choice(("shape", "shape", "color", "color shape")))
        if talk.rng.random() < 0.06:
            query = Query()
    found = left_to_right(talk.world, query.find(talk.world))
    grounded = 0 < len(found) <= 8 and talk.rng.random() < 0.3
    user = fill(
        talk.rng,
        ("How many {} are there?", "How many {} do you see?", "Count the {} in the image."),
        query.noun(talk.rng, many=True),
    )
    noun = query.noun(many=len(found) != 1)
    verb = "is" if len(found) == 1 else "are"
    if grounded:
        user = GROUNDING + " " + user
        noun = f"<p>{noun}</p>{talk.marks(found)}"
    return talk.say(
        "count",
        user,
        f"There {verb} {lang.number(len(found))} {noun}.",
        str(len(found)),
        found,
        absent=not found,
        targets=[talk.box(i) for i in found] if grounded else [],
    )


def read(talk: Talk) -> bool:
    """Read the printed word of a thing, or say that it has none."""
    printed = [i for i, t in enumerate(talk.things) if t.readable]
    blank = [i for i, t in enumerate(talk.things) if not t.word]
    if printed and (not blank or talk.rng.random() < 0.85):
        i = talk.rng.choice(printed)
        text, answer = f"It says {talk.things[i].word}.", talk.things[i].word
    elif blank and printed:
        i, text, answer = talk.rng.choice(blank), "There is no text on it.", ""
    else:
        return False
    name = None if talk.shown else anchor_query(talk.world, i)
    if name is not None and (talk.named or talk.rng.random() < 0.5):
        thing, refers = f"the {name.noun(talk.rng)}", []
    elif talk.named:
        return False
    else:
        refers = [talk.box(i)]
        thing = f"<r:{refers[0]}>"
    user = fill(
        talk.rng,
        ("What is written on {}?", "What does {} say?", "Which word is printed on {}?"),
        thing,
    )
    return talk.say("read", user, text, answer, object=i, refers=refers, absent=not answer)


Task = Callable[[Talk], bool]

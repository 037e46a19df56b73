"""Videos of scenes: some things move straight on, the others stay; and questions about that.

The things of a film are those of the scene with the same number, seen in the first frame; movers
are in front of all others, and what one of them hides at the start is left out.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mg_jax.data.scenes import language as lang
from mg_jax.data.scenes import tasks
from mg_jax.data.scenes.expressions import anchor_query
from mg_jax.data.scenes.shapes import stamp
from mg_jax.data.scenes.tasks import Talk, fill, left_to_right
from mg_jax.data.scenes.world import MIN_VISIBLE, Thing, World, at_time, render, settle
from mg_jax.data.video import frame_numbers
from mg_jax.example import Region

# direction: (axis, sign, how an answer says it)
DIRECTIONS = {
    "left": (0, -1, "to the left"),
    "right": (0, 1, "to the right"),
    "up": (1, -1, "up"),
    "down": (1, 1, "down"),
}
MOVERS = (0.12, 0.6, 0.28)  # how often 0, 1 and 2 things move
WAY = (0.22, 0.45)  # how far one moves in a whole film, as a share of the shorter side


@dataclass(frozen=True)
class Film:
    """A scene in motion, as `Example.video`: frames are drawn when called.

    worlds: the scene at each frame; a thing out of sight is absent there, `Thing.key` tells who is
    who. moves: direction by the number of a thing in the first frame, of those that move.
    """

    worlds: tuple[World, ...]
    moves: Mapping[int, str]

    def __call__(self, count: int) -> np.ndarray:
        """uint8 RGB [count, height, width, 3], evenly spaced over the film."""
        numbers = frame_numbers(len(self.worlds), count)
        drawn = {i: render(self.worlds[i]) for i in set(numbers)}
        return np.stack([drawn[i] for i in numbers])


def make_film(world: World, frames: int, rng: random.Random) -> Film:
    """The scene over so many frames. What moves, and where to, depends on `rng` alone."""
    order = list(range(len(world.things)))
    rng.shuffle(order)
    order.sort(key=lambda i: anchor_query(world, i) is None)  # first what can be asked about
    wanted = rng.choices(range(len(MOVERS)), MOVERS)[0]
    ways: dict[int, tuple[str, tuple[float, float]]] = {}  # by key
    for i in order:
        way = _way(world.things[i], world, rng) if len(ways) < wanted else None
        if way is not None:
            ways[world.things[i].key] = way
    things = sorted(world.things, key=lambda thing: thing.key in ways)  # movers in front
    things = [
        replace(thing, velocity=(dx / (frames - 1), dy / (frames - 1)))
        for thing in things
        for dx, dy in [ways[thing.key][1] if thing.key in ways else (0.0, 0.0)]
    ]
    kept, ids = settle(things, world.width, world.height, MIN_VISIBLE)
    first = replace(world, things=kept, ids=ids)
    worlds = (first, *(at_time(first, t) for t in range(1, frames)))
    moves = {i: ways[thing.key][0] for i, thing in enumerate(kept) if thing.key in ways}
    return Film(worlds, moves)


def _way(thing: Thing, world: World, rng: random.Random) -> tuple[str, tuple[float, float]] | None:
    """(direction, pixels across and down) of a thing that stays inside the picture, or None."""
    h, w = stamp(thing.shape, thing.angle, thing.flip, thing.side)[0].shape
    way = rng.uniform(*WAY) * min(world.width, world.height)
    names = list(DIRECTIONS)
    rng.shuffle(names)
    for name in names:
        axis, sign, _ = DIRECTIONS[name]
        step = [0.0, 0.0]
        step[axis] = sign * way
        x, y = thing.x0 + step[0], thing.y0 + step[1]
        ends = (min(thing.x0, x), min(thing.y0, y), max(thing.x0, x) + w, max(thing.y0, y) + h)
        if min(ends[:2]) >= 0 and ends[2] <= world.width and ends[3] <= world.height:
            return name, (step[0], step[1])
    return None


class FilmTalk(Talk):
    """A conversation about a film; things, and boxes but those that `ask` adds, are those of its
    first frame."""

    def __init__(self, film: Film, rng: random.Random, named: bool = False, shown: bool = False):
        super().__init__(film.worlds[0], rng, named, shown)
        self.film = film

    def names(self, moving: bool) -> list[tuple[int, str]]:
        """(thing, its name) of those that move, or stay, and that a short name tells apart."""
        order = [i for i in range(len(self.things)) if (i in self.film.moves) == moving]
        self.rng.shuffle(order)
        queries = [(i, anchor_query(self.world, i)) for i in order]
        return [(i, "the " + query.noun(self.rng)) for i, query in queries if query is not None]

    def ask(
        self,
        task: str,
        user: str,
        assistant: str,
        answer: str,
        things: list[int],
        at_end: bool = False,
        **record: Any,
    ) -> bool:
        """As `say`, about things; the answer rests on where they are in the last frame too, or, if
        they have to be found by what they do until then (at_end), on that alone."""
        if not self.say(task, user, assistant, answer, things, **record):
            return False
        keys = [self.things[i].key for i in things]
        ends = [thing for thing in self.film.worlds[-1].things if thing.key in keys]
        there = tuple(self.add(Region.from_box(t.box, label=t.name)) for t in ends)  # still seen
        turn = self.turns[-1]
        alone = at_end and len(there) == len(things)
        about = there if alone else (*(turn.about or ()), *there)
        self.turns[-1] = replace(turn, about=about, landmarks=there)
        return True


_MOVED = ("What moves in the video?", "Which objects move?", "What is moving?")
_DIRECTION = (
    "In which direction does {} move?",
    "Which way does {} go?",
    "Where does {} move to?",
)
_MOVES = ("Does {} move?", "Is {} moving in the video?", "Do you see {} move?")
_DESCRIBE = ("Describe the video.", "What happens in the video?", "What does the video show?")


def moved(talk: FilmTalk) -> bool:
    """Name what moves, from left to right, or say that nothing does."""
    found = left_to_right(talk.world, list(talk.film.moves))
    names = [talk.things[i].name for i in found]
    verb = "move" if len(names) > 1 else "moves"
    text = lang.join([f"the {name}" for name in names]) if names else "nothing"
    user = talk.rng.choice(_MOVED)
    answer = "; ".join(names)
    said = f"{text[0].upper()}{text[1:]} {verb}."
    return talk.ask("moved", user, said, answer, found, at_end=True, absent=not names)


def direction(talk: FilmTalk) -> bool:
    """Say where a thing moves to; one time in eight it does not."""
    moving = talk.rng.random() >= 0.125
    names = talk.names(moving)
    if not names:
        return False
    i, name = names[0]
    user = fill(talk.rng, _DIRECTION, name)
    way = talk.film.moves.get(i, "")
    text = f"It moves {DIRECTIONS[way][2]}." if way else "It does not move."
    return talk.ask("direction", user, text, way or "none", [i], object=i)


def moves(talk: FilmTalk) -> bool:
    """Does it move? Yes and no equally often, where the film has both."""
    names = talk.names(talk.coin())
    if not names:
        return False
    i, name = names[0]
    yes = i in talk.film.moves
    text = f"Yes, {name} moves." if yes else f"No, {name} stays where it is."
    user = fill(talk.rng, _MOVES, name)
    return talk.ask("moves", user, text, "yes" if yes else "no", [i], object=i)


def caption(talk: FilmTalk) -> bool:
    """What the film shows: each thing that moves with its direction, then those that stay."""
    moving = left_to_right(talk.world, list(talk.film.moves))
    still = left_to_right(talk.world, sorted({*range(len(talk.things))} - {*moving}))

    def name(i: int) -> str:
        return lang.a(talk.things[i].name)

    parts = [f"{name(i)} moves {DIRECTIONS[talk.film.moves[i]][2]}" for i in moving]
    if still:
        verb = "stays" if len(still) == 1 else "stay"
        parts.append(f"{lang.join([name(i) for i in still])} {verb} in place")
    text = "; ".join(parts)
    user = talk.rng.choice(_DESCRIBE)
    names = [talk.things[i].name for i in (*moving, *still)]
    said = f"{text[0].upper()}{text[1:]}."
    return talk.ask("caption", user, said, "; ".join(names), [*moving, *still])


def presence(talk: FilmTalk) -> bool:
    """As of pictures: nothing comes or goes in a film."""
    if not tasks.presence(talk):
        return False
    turn = talk.turns[-1]

    def of_video(text: str) -> str:
        return text.replace("image", "video").replace("picture", "video")

    asked, said = of_video(turn.user), of_video(turn.assistant or "")
    talk.turns[-1] = replace(turn, user=asked, assistant=said)
    return True


# As `conversation.TASKS` of pictures: name: (the task, its weight in the mixture "all").
FILM_TASKS: dict[str, tuple[Callable[[FilmTalk], bool], float]] = {
    "moved": (moved, 1.0),
    "direction": (direction, 1.5),
    "moves": (moves, 0.8),
    "caption": (caption, 0.3),
    "presence": (presence, 0.5),
}

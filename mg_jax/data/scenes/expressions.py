"""Referring expressions that fit exactly one thing of a scene, and descriptions that fit none."""

import random
from dataclasses import dataclass

from mg_jax.data.scenes.draw import COLORS, TEXTURES
from mg_jax.data.scenes.language import (
    RELATIONS,
    Query,
    distance,
    full_query,
    holds,
    position,
    where,
)
from mg_jax.data.scenes.shapes import SHAPES
from mg_jax.data.scenes.world import WORDS, World

STYLES = ("attributes", "position", "relation", "word")
# Attribute sets in order of length; of the shortest ones that are unique, one is drawn.
_SETS = (
    ("shape",),
    ("color shape", "size shape", "texture shape", "color"),
    ("size color shape", "color texture shape", "size texture shape", "size color"),
    ("size color texture shape",),
)
_EXTREMES = {
    "left": (0, 1, ("leftmost {}", "{} furthest to the left")),
    "right": (0, -1, ("rightmost {}", "{} furthest to the right")),
    "above": (1, 1, ("topmost {}", "highest {}")),
    "below": (1, -1, ("lowest {}", "{} nearest to the bottom")),
}


@dataclass(frozen=True)
class Expression:
    """A phrase without article. style: one of STYLES. targets: the things it fits."""

    text: str
    style: str
    targets: tuple[int, ...]
    query: Query


def unique_expression(
    world: World, i: int, rng: random.Random, style: str | None = None
) -> Expression | None:
    """An expression that fits thing i and nothing else, or None where there is none.

    style None: attributes for most things (as short as possible, sometimes colour and shape
    although less would do), else position, relation to another thing, or the printed word.
    """
    if style is None:
        order = rng.choices(STYLES, (70, 14, 12, 4), k=1) + list(STYLES)
    else:
        order = [style]
    for name in order:
        found = _BUILDERS[name](world, i, rng)
        if found is not None:
            return found
    return None


def attribute_query(world: World, i: int, rng: random.Random) -> Query | None:
    """The query that fits thing i alone: short, or plain colour and shape now and then."""
    thing = world.things[i]
    if rng.random() < 0.4:
        query = full_query(thing)
        if query.find(world) == [i]:
            return query
    for sets in _SETS:
        fitting = []
        for keys in sets:
            if "texture" in keys and thing.shape == "sign":
                continue
            query = full_query(thing, keys)
            if query.find(world) == [i]:
                fitting.append(query)
        if fitting:
            return rng.choice(fitting)
    return None


def _by_attributes(world: World, i: int, rng: random.Random) -> Expression | None:
    query = attribute_query(world, i, rng)
    return None if query is None else Expression(query.noun(rng), "attributes", (i,), query)


def _class_of(world: World, i: int, rng: random.Random) -> Query:
    """A class that thing i shares with others where possible: its shape, colour, or both."""
    queries = [full_query(world.things[i], k) for k in ("color shape", "shape", "color")]
    shared = [q for q in queries if len(q.find(world)) > 1]
    return rng.choice(shared) if shared else queries[0]


def _by_position(world: World, i: int, rng: random.Random) -> Expression | None:
    query = _class_of(world, i, rng)
    others = [world.things[k] for k in query.find(world) if k != i]
    if not others:
        return None
    thing = world.things[i]
    names = list(_EXTREMES)
    rng.shuffle(names)
    for name in names:
        axis, sign, forms = _EXTREMES[name]
        gap = min(sign * (other.center[axis] - thing.center[axis]) for other in others)
        if gap >= 0.08:
            return Expression(rng.choice(forms).format(query.noun(rng)), "position", (i,), query)
    place = position(thing)
    if place and all(position(other) not in (None, place) for other in others):
        corner = " corner" if " " in place and rng.random() < 0.5 else ""
        text = f"{query.noun(rng)} {where(place)}{corner}"
        return Expression(text, "position", (i,), query)
    return None


def anchor_query(world: World, i: int) -> Query | None:
    """The short name of an anchor: its shape, or colour and shape, if that is unique."""
    for keys in ("color shape", "size color shape"):
        query = full_query(world.things[i], keys)
        if query.find(world) == [i]:
            return query
    return None


def _by_relation(world: World, i: int, rng: random.Random) -> Expression | None:
    thing = world.things[i]
    query = _class_of(world, i, rng)
    rivals = [k for k in query.find(world) if k != i]
    anchors = [k for k in range(len(world.things)) if k != i and k not in rivals]
    rng.shuffle(anchors)
    for k in anchors[:4]:
        name = anchor_query(world, k)
        if name is None:
            continue
        anchor = world.things[k]
        forms = []
        for relation, (_, _, phrases) in RELATIONS.items():
            if holds(relation, thing, anchor, 0.1) and not any(
                holds(relation, world.things[r], anchor, -0.03) for r in rivals
            ):
                forms.append(rng.choice(phrases))
        near = distance(thing, anchor)
        if rivals and all(distance(world.things[r], anchor) > 1.3 * near for r in rivals):
            forms.append(rng.choice(("nearest to", "closest to")))
        if forms:
            text = f"{query.noun(rng)} {rng.choice(forms)} the {name.noun(rng)}"
            return Expression(text, "relation", (i,), query)
    return None


def _by_word(world: World, i: int, rng: random.Random) -> Expression | None:
    thing = world.things[i]
    if not thing.readable:
        return None
    query = Query(shape=thing.shape if rng.random() < 0.7 else None, word=thing.word)
    if query.find(world) != [i]:
        return None
    return Expression(query.noun(rng), "word", (i,), query)


_BUILDERS = {
    "attributes": _by_attributes,
    "position": _by_position,
    "relation": _by_relation,
    "word": _by_word,
}


def absent_query(world: World, rng: random.Random, kinds: str = "color shape|shape|color") -> Query:
    """A query that fits nothing in the scene, half of the time nearly fitting something.

    kinds: the attribute sets to draw from, separated by "|". A hard one takes shape and colour
    from different things of the scene.
    """
    shapes = sorted({t.shape for t in world.things})
    colors = sorted({t.color for t in world.things})
    kind = rng.choice(kinds.split("|"))
    for _ in range(40):
        if kind == "word":
            query = Query(shape=rng.choice(("sign", None)), word=rng.choice(WORDS))
        elif kind == "shape":
            query = Query(shape=rng.choice(list(SHAPES)))
        elif kind == "color":
            query = Query(color=rng.choice(list(COLORS)))
        else:
            u = rng.random()
            query = Query(
                shape=rng.choice(shapes if u < 0.7 else list(SHAPES)),
                color=rng.choice(colors if u < 0.4 or u > 0.85 else list(COLORS)),
                texture=rng.choice(TEXTURES[1:]) if kind == "color texture shape" else None,
            )
        if not query.find(world):
            return query
        if kind == "color" and len(colors) == len(COLORS):
            kind = "shape"
    # Every colour of every shape tried is there: fall back on the first shape that is not.
    return next(
        q for q in (Query(shape=s, color=c) for s in SHAPES for c in COLORS) if not q.find(world)
    )

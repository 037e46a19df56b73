"""Captions, relations, attributes and dialogues about a scene (see `tasks` for the others)."""

from typing import Any

from mg_jax.data.scenes import language as lang
from mg_jax.data.scenes.expressions import absent_query, anchor_query, unique_expression
from mg_jax.data.scenes.language import RELATIONS, full_query
from mg_jax.data.scenes.tasks import Talk, fill, left_to_right
from mg_jax.text.instructions import GROUNDING, INSTRUCTIONS

MAX_NAMED = 8  # a caption names at most so many things: those with the largest visible area
_LISTS = (
    "List all objects from left to right.",
    "Describe the objects one by one from left to right.",
    "What objects are there, from left to right?",
)
_DETAILS = (
    "Describe the image in detail.",
    "Please give a detailed description of this picture.",
)
_BACKGROUNDS = {
    "plain": "a plain background",
    "gradient": "a background that changes its shade",
    "noise": "a grainy background",
    "texture": "a patterned background",
}


def named(talk: Talk) -> list[int]:
    """The things that a caption names, left to right."""

    def area(i: int) -> float:
        x0, y0, x1, y1 = talk.things[i].box
        return -(x1 - x0) * (y1 - y0)

    return left_to_right(talk.world, sorted(range(len(talk.things)), key=area)[:MAX_NAMED])


def _caption(talk: Talk, grounded: bool) -> tuple[str, str, list[int]]:
    """(request, caption, the things it names)."""
    rng, things = talk.rng, talk.things
    order = named(talk)

    def phrase(i: int, long: bool = False) -> str:
        text = lang.a(lang.detail(things[i]) if long else things[i].name)
        if not grounded:
            return text
        article, _, noun = text.partition(" ")
        return f"{article} <p>{noun}</p>{talk.marks([i])}"

    u = rng.random()
    if u < 0.25:
        request = rng.choice(_LISTS)
        text = f"From left to right: {lang.join([phrase(i) for i in order])}."
    elif u < 0.4:
        request = rng.choice(_DETAILS)
        ground = _BACKGROUNDS[talk.world.background]
        text = f"The image shows {lang.join([phrase(i, True) for i in order])} on {ground}."
    else:
        request = rng.choice(INSTRUCTIONS["grounded_caption"]).removeprefix(GROUNDING)
        pairs = list(zip(order[::2], order[1::2], strict=False))
        links = [lang.relation(things[i], things[k]) for i, k in pairs]
        if u < 0.5 and pairs and all(links):
            parts = [
                f"{phrase(i)} {RELATIONS[link][2][0]} {phrase(k)}"
                for (i, k), link in zip(pairs, links, strict=True)
                if link
            ]
            if len(order) % 2:
                parts.append(phrase(order[-1]))
            text = "There is " + "; ".join(parts) + "."
        elif u < 0.6:
            # Things of one colour and shape share a phrase where the first of them stands.
            groups: dict[str, list[int]] = {}
            for i in order:
                groups.setdefault(things[i].name, []).append(i)
            parts = []
            for members in groups.values():
                if len(members) == 1:
                    parts.append(phrase(members[0]))
                    continue
                noun = full_query(things[members[0]]).noun(many=True)
                noun = f"<p>{noun}</p>{talk.marks(members)}" if grounded else noun
                parts.append(f"{lang.number(len(members))} {noun}")
            text = f"The picture shows {lang.join(parts)}."
        else:
            text = f"The image shows {lang.join([phrase(i) for i in order])}."
    return request, text, order


def caption(talk: Talk) -> bool:
    """Describe the picture in words alone."""
    request, text, order = _caption(talk, False)
    names = [talk.things[i].name for i in order]
    return talk.say("caption", request, text, "; ".join(names), objects=order)


def grounded_caption(talk: Talk) -> bool:
    """Describe the picture, every thing grounded."""
    request, text, order = _caption(talk, True)
    space = " " if talk.rng.random() < 0.3 else ""
    names = [talk.things[i].name for i in order]
    return talk.say(
        "grounded_caption",
        GROUNDING + space + request,
        text,
        "; ".join(names),
        targets=[talk.box(i) for i in order],
        objects=order,
        phrases=names,
    )


def _pair(talk: Talk) -> tuple[int, int, str] | None:
    """Two things in a clear relation of the first to the second."""
    for _ in range(8):
        if len(talk.things) < 2:
            return None
        i, k = talk.rng.sample(range(len(talk.things)), 2)
        link = lang.relation(talk.things[i], talk.things[k])
        if link:
            return i, k, link
    return None


def _who(talk: Talk, i: int, refers: list[int]) -> str:
    """A way to say which thing is meant: a unique name, or a region appended to `refers`; "" for
    none."""
    name = None if talk.shown else anchor_query(talk.world, i)
    if name is not None and (talk.named or talk.rng.random() < 0.6):
        return "the " + name.noun(talk.rng)
    if talk.named:
        return ""
    refers.append(talk.box(i))
    return f"<r:{refers[-1]}>"


def relation(talk: Talk) -> bool:
    """How two things stand to each other: said, yes or no, or the nearest one located."""
    rng = talk.rng
    u = rng.random()
    if u < 0.3:
        return _nearest(talk)
    if u < 0.5:
        return _beside(talk)
    found = _pair(talk)
    if found is None:
        return False
    i, k, link = found
    refers: list[int] = []
    one, other = _who(talk, i, refers), _who(talk, k, refers)
    if not (one and other):
        return False
    name = "it" if other.startswith("<") else other
    record: dict[str, Any] = {"object": i, "other": k, "refers": refers}
    if u < 0.75:
        user = fill(
            rng,
            ("Where is {} relative to OTHER?", "What is the position of {} relative to OTHER?"),
            one,
        ).replace("OTHER", other)
        text = f"It is {RELATIONS[link][2][0]} {name}."
        return talk.say("relation", user, text, link, **record)
    asked = link if talk.coin() else lang.OPPOSITE[link]
    user = f"Is {one} {rng.choice(RELATIONS[asked][2])} {other}?"
    text = ("Yes" if asked == link else "No") + f", it is {RELATIONS[link][2][0]} {name}."
    return talk.say("relation_yes_no", user, text, "yes" if asked == link else "no", **record)


def _nearest(talk: Talk) -> bool:
    things = talk.things
    if len(things) < 3:
        return False
    i = talk.pick()
    others = sorted(
        (lang.distance(thing, things[i]), k) for k, thing in enumerate(things) if k != i
    )
    if others[1][0] < 1.25 * others[0][0]:
        return False
    refers: list[int] = []
    one, k = _who(talk, i, refers), others[0][1]
    if not one:
        return False
    user = fill(
        talk.rng,
        ("Which object is nearest to {}?", "What is closest to {}?"),
        one,
    )
    return talk.say(
        "nearest",
        f"{GROUNDING} {user}",
        f"The <p>{things[k].name}</p><r:{talk.box(k)}>.",
        things[k].name,
        targets=[talk.box(k)],
        object=k,
        other=i,
        refers=refers,
    )


def _beside(talk: Talk) -> bool:
    """Everything on one side of a thing, or that there is nothing."""
    things, i = talk.things, talk.pick()
    link = talk.rng.choice(list(RELATIONS))
    rest = [k for k in range(len(things)) if k != i]
    sure = [k for k in rest if lang.holds(link, things[k], things[i], 0.05)]
    maybe = [k for k in rest if lang.holds(link, things[k], things[i], -0.03)]
    name = anchor_query(talk.world, i)
    if sure != maybe or len(sure) > 6 or name is None:
        return False
    phrase = f"{RELATIONS[link][2][0]} the {name.noun(talk.rng)}"
    user = f"Locate all <p>objects {phrase}</p> in this image."
    if not sure:
        text = f"There is no object {phrase} in the image."
        return talk.say("beside", user, text, "absent", absent=True, other=i)
    found = left_to_right(talk.world, sure)
    targets = [talk.box(k) for k in found]
    return talk.say(
        "beside", user, talk.marks(found), phrase, targets=targets, objects=found, other=i
    )


_ASPECTS = {
    "color": ("What color is {}?", "Which color does {} have?"),
    "shape": ("What shape is {}?", "What kind of object is {}?"),
    "size": ("How big is {}?", "What is the size of {}?"),
    "texture": ("What pattern does {} have?", "Is {} plain, striped, dotted or checked?"),
    "place": ("In which part of the image is {}?", "Where in the image is {}?"),
}


def _aspect(talk: Talk, task: str, i: int, subject: str, aspect: str, refers: list[int]) -> bool:
    thing = talk.things[i]
    if aspect == "place":
        place = lang.position(thing)
        if place is None:
            return False
        answer, text = place, f"It is {lang.where(place)}."
    else:
        answer = getattr(thing, aspect)
        text = f"It is {lang.a(answer) if aspect == 'shape' else answer}."
    user = fill(talk.rng, _ASPECTS[aspect], subject)
    return talk.say(task, user, text, answer, object=i, refers=refers, aspect=aspect)


def attribute(talk: Talk) -> bool:
    """The colour, shape, size, texture or place of a thing that is shown or named."""
    i = talk.pick()
    aspect = talk.rng.choice(list(_ASPECTS))
    found = unique_expression(talk.world, i, talk.rng)
    refers: list[int] = []
    if found is None:
        said = None
    elif aspect == "place":
        said = found.style == "position" or None
    else:
        said = getattr(found.query, aspect)
    if talk.named and (found is None or said):
        return False
    if found is None or said or talk.shown or (not talk.named and talk.rng.random() < 0.5):
        refers.append(talk.box(i))
        subject = f"<r:{refers[0]}>"
    else:
        subject = "the " + found.text
    return _aspect(talk, "attribute", i, subject, aspect, refers)


def dialogue(talk: Talk) -> bool:
    """Three to five turns about one thing: found or shown first, then "it" is asked about."""
    rng, i = talk.rng, talk.pick()
    thing = talk.things[i]
    found = unique_expression(talk.world, i, rng)
    start = len(talk.turns)
    known: set[str] = set()
    if found is not None and rng.random() < 0.6:
        user = fill(rng, INSTRUCTIONS["rec"], f"<p>the {found.text}</p>")
        k = talk.box(i)
        ok = talk.say(
            "dialogue", user, f"<r:{k}>", found.text, targets=[k], object=i, style=found.style
        )
        query = found.query
        known |= {n for n in ("shape", "color", "size", "texture") if getattr(query, n)}
    else:
        k = talk.box(i)
        user = fill(rng, INSTRUCTIONS["region_caption"], f"<r:{k}>")
        text = lang.a(thing.name).capitalize() + "."
        ok = talk.say("dialogue", user, text, thing.name, object=i, refers=[k])
        known |= {"shape", "color"}
    if not ok:
        return False
    aspects = [name for name in _ASPECTS if name not in known]
    rng.shuffle(aspects)
    for aspect in aspects[: rng.randint(1, 2)]:
        _aspect(talk, "dialogue", i, "it", aspect, [])
    u = rng.random()
    if u < 0.35:
        others = [k for k in full_query(thing, "shape").find(talk.world) if k != i]
        text = f"No, there is no other {thing.shape} in the image."
        if others:
            text = f"Yes, there is another {thing.shape}."
        user = f"Is there another {thing.shape}?"
        talk.say("dialogue", user, text, "yes" if others else "no", object=i)
    elif u < 0.6:
        query = full_query(thing, "shape")
        n = len(query.find(talk.world))
        verb, noun = ("is", thing.shape) if n == 1 else ("are", query.noun(many=True))
        user = f"How many {query.noun(many=True)} are there in total?"
        talk.say("dialogue", user, f"There {verb} {lang.number(n)} {noun}.", str(n), object=i)
    elif u < 0.8:
        query = absent_query(talk.world, rng, "color shape")
        user = f"And where is <p>the {query.noun()}</p>?"
        text = f"There is no {query.noun()} in the image."
        talk.say("dialogue", user, text, "absent", absent=True)
    else:
        other = talk.pick()
        name = anchor_query(talk.world, other) if other != i else None
        if name is not None:
            k = talk.box(other)
            user = f"And where is <p>the {name.noun(rng)}</p>?"
            talk.say("dialogue", user, f"<r:{k}>", name.noun(), targets=[k], object=other)
    return len(talk.turns) - start >= 2

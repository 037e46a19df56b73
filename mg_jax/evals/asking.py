"""Questions about the annotations of pictures that come without conversation.

Each function takes an Example and gives it the questions of one kind as turns, with the annotated
answers, or None where it affords none. Wording: the first of Groma's published questions of the
kind, ours for presence and object images; `reworded` puts what locates into a system's own words.
What is drawn depends on the example's id alone.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from mg_jax.data.tasks.base import Talk, absent_names, classes, draw, named, present_names
from mg_jax.data.tasks.filters import Filters
from mg_jax.data.tasks.locating import expressions
from mg_jax.data.tasks.objects import OBJECT_TASKS, OPTIONS, image
from mg_jax.evals.questions import Item
from mg_jax.example import Example
from mg_jax.text import instructions, markup, words

BOXES = 10  # boxes of a picture whose name is asked for, a draw where it has more
NAMES = 3  # names of a picture that are there, and as many that are not, in a draw of each

_WORDING = instructions.get("groma")
_OBJECTS = instructions.get("tiny_grounding_gpt")


def rec(example: Example) -> Example | None:
    """Every expression of one region that is not ambiguous."""
    talk = Talk(example)
    for text, regions in expressions(example).items():
        if len(regions) == 1:
            talk.say("rec", _locate("rec", text), talk.mark(*regions))
    return talk.done()


def rec_absent(example: Example) -> Example | None:
    """Every expression of something that is not in the picture."""
    talk = Talk(example)
    _deny(talk, "rec", (text for text, regions in expressions(example).items() if not regions))
    return talk.done()


def all_instances(example: Example) -> Example | None:
    """Every class of the objects, but those with a crowd or marked as not exhaustive."""
    talk = Talk(example)
    _locate_all(talk, classes(example))
    return talk.done()


def things(example: Example) -> Example | None:
    """What is there: expressions, where the picture has some, else up to NAMES classes."""
    if example.expressions:
        return rec(example)
    talk = Talk(example)
    _locate_all(talk, _drawn(example, list(classes(example)))[0])
    return talk.done()


def absent_things(example: Example) -> Example | None:
    """What is not there: expressions, where the picture has some, else as many absent names as
    `things` asks for classes, common ones more often."""
    if example.expressions:
        return rec_absent(example)
    talk = Talk(example)
    _deny(talk, "all_instances", _drawn(example, list(classes(example)))[1])
    return talk.done()


def presence(example: Example) -> Example | None:
    """Up to NAMES things that are there, and as many absent names, common ones more often."""
    talk = Talk(example)
    there, missing = _drawn(example, present_names(example))
    for name, absent in [(n, False) for n in there] + [(n, True) for n in missing]:
        talk.say("presence", *is_there(name, not absent), absent)
    return talk.done()


def is_there(name: str, there: bool) -> tuple[str, str]:
    """The question whether a thing of that name is in the picture, and the answer."""
    answer = _WORDING.texts["presence_yes" if there else "presence_no"][0]
    return (
        _WORDING.texts["presence"][0].replace("{}", words.a(name)),
        answer.replace("{}", words.a(name) if there else name),
    )


def object_match(example: Example) -> Example | None:
    """Where is it, for the images of up to BOXES things, in their order."""
    talk = Talk(example)
    regions = Filters().shown((*example.objects, *example.regions))
    for k in sorted(_rng(example).permutation(len(regions))[:BOXES]):
        region = replace(regions[k], label=None)  # the name must not travel with the box
        user = _OBJECTS.texts["object_match"][0].replace("{}", image(talk, region))
        talk.say("object_match", user, talk.mark(region))
    return talk.done()


def object_choice(example: Example) -> Example | None:
    """One question of each kind, where there are four options."""
    return _several(example, ("place_choice", "name_choice"), OPTIONS)


def object_relation(example: Example) -> Example | None:
    """Up to NAMES questions about relations."""
    return _several(example, ("object_relation",) * NAMES)


def _several(example: Example, tasks: Iterable[str], options: int = 0) -> Example | None:
    """A question of each task, those without so many options left out where a number is given."""
    talk, rng = Talk(example), _rng(example)
    for task in tasks:
        made = OBJECT_TASKS[task](example, rng, _OBJECTS)
        if made is None or (options and made.meta["turns"][0].get("options") != options):
            continue
        for turn, record in zip(made.turns, made.meta["turns"], strict=True):
            user, answer = talk.move(turn.user, made.regions), turn.assistant or ""
            if talk.say(task, user, answer) and "options" in record:
                talk.records[-1]["options"] = record["options"]
    return talk.done()


def naming(example: Example) -> Example | None:
    """What is in a box, for up to BOXES boxes with a label, in their order."""
    talk = Talk(example)
    boxes = named(example)
    chosen = sorted(_rng(example).permutation(len(boxes))[:BOXES])
    for name, region in (boxes[k] for k in chosen):
        mark = talk.mark(replace(region, label=None))  # the name must not travel with the box
        talk.say("naming", _WORDING.texts["region_caption"][0].replace("{}", mark),
                 name.capitalize())  # fmt: skip
    return talk.done()


def reworded(items: Sequence[Item], system: str) -> list[Item]:
    """The items, with questions of `rec` and `all_instances` that were written here as the system
    words them first: TinyGroundingGPT's "Output the coordinate of ..." (its spec, 6)."""
    texts = instructions.get(system).texts

    def one(item: Item) -> Item:
        task = str(item.record.get("task", "")).removesuffix("_absent")
        if task not in ("rec", "all_instances") or item.turn is None:
            return item
        turns = list(item.example.turns)
        asked = turns[item.turn]
        phrase = next((s.text for s in markup.parse(asked.user) if s.kind == "phrase"), "")
        if asked.user != _locate(task, phrase):
            return item
        turns[item.turn] = replace(asked, user=texts[task][0].replace("{}", f"<p>{phrase}</p>"))
        return replace(item, example=replace(item.example, turns=tuple(turns)))

    return [one(item) for item in items]


def _locate(task: str, phrase: str) -> str:
    return instructions.fill(task, 0, phrase)


def _locate_all(talk: Talk, names: Iterable[str]) -> None:
    there = classes(talk.example)
    for name in names:
        regions = sorted(there[name], key=lambda r: (r.box[0] + r.box[2], r.box))
        talk.say("all_instances", _locate("all_instances", name), talk.mark(*regions))


def _deny(talk: Talk, task: str, phrases: Iterable[str]) -> None:
    for phrase in phrases:
        answer = markup.ABSENT[0].replace("{}", words.without_article(phrase))
        talk.say(f"{task}_absent", _locate(task, phrase), answer, absent=True)


def _drawn(example: Example, there: list[str]) -> tuple[list[str], list[str]]:
    """Names that are there and as many that are not, up to NAMES."""
    rng = _rng(example)
    weights = {name: w for name, w in absent_names(example).items() if w > 0}
    count = min(NAMES, len(there), len(weights))
    missing = []
    for _ in range(count):
        missing.append(draw(weights, rng))
        del weights[missing[-1]]
    return [there[k] for k in rng.permutation(len(there))[:count]], missing


def _rng(example: Example) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(example.id.encode()))

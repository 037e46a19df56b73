"""TinyGroundingGPT's multi-scale data (spec 4 and 5): the tasks of `mg_jax.data.tasks.objects`, in
the words of an endpoint where there is one.

    object_match          an object image to its place
    place_choice          a place to one of several object images
    name_choice           a text to one of several object images
    object_relation       how things relate, object images in place of their names
    grounding_dialogue    several rounds about details, from place to place
    grounded_description  a description in which every named object has its place

The first two need no words but templates. For the others the endpoint is told of things, places
and relations, as text; without endpoint the task builders write them.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from string import ascii_uppercase
from typing import Any

import numpy as np

from mg_jax.data.synthesis import filters, replies, steps
from mg_jax.data.synthesis.case import Case
from mg_jax.data.synthesis.filters import Thing
from mg_jax.data.synthesis.recipes.base import Made, Stage, dialogue
from mg_jax.data.synthesis.replies import Unreadable
from mg_jax.data.synthesis.steps import Link
from mg_jax.data.tasks.base import shuffled
from mg_jax.data.tasks.objects import NAMES, ObjectTasks, lettered, some_shown
from mg_jax.text import instructions, markup

WORDING = instructions.get("tiny_grounding_gpt")
_ONCE = ("grounding_dialogue", "grounded_description")
_DRAWS = 6  # tries for each question of a kind, since a builder may draw one twice
_OF_ONE = ("object_match", "place_choice")  # about the first region of the question
_OF_OPTIONS = ("overlapping options", "too few options")


def tiny_grounding_gpt(case: Case) -> Made:
    """The conversations of a picture, of every kind that `Tools.kinds` names."""
    found = filters.few_boxes(steps.things(case), case.tools.limits, case.drops)
    scene = Scene(case, found, steps.relate(case, found))
    for kind in case.tools.kinds:
        if case.tools.endpoint is not None and kind in BY_ENDPOINT:
            BY_ENDPOINT[kind](scene)
        else:
            by_builder(scene, kind)
    return scene.finished()


class Scene(Stage):
    """shown: numbers of the things that make object images."""

    def __init__(self, case: Case, found: Sequence[Thing], links: Sequence[Link]):
        super().__init__(case, found, links)
        self.shown = filters.shown(self.found, case.tools.limits, case.drops)

    def prompt(self, count: int) -> dict[str, Any]:
        """What prompts say of the picture."""
        return {
            "objects": steps.listed(self.found),
            "relations": steps.linked(self.found, self.links),
            "choices": ", ".join(str(n + 1) for n in self.shown),
            "options": self.case.tools.choices,
            "captions": steps.lines(map(markup.strip, self.case.example.captions)),
            "count": count,
        }

    def overlap(self, numbers: Sequence[int]) -> bool:
        """Whether any two of the things overlap too much to be options of one choice."""
        from mg_jax.boxes import iou  # here, since it brings jax along

        boxes = np.array([self.found[n].box for n in dict.fromkeys(numbers)], np.float64)
        ious = np.array(iou(boxes.reshape(-1, 4), boxes.reshape(-1, 4)))
        return bool((np.triu(ious, 1) >= self.case.tools.limits.option_iou).any())


def by_builder(scene: Scene, kind: str) -> None:
    """A kind of question as the task builders make it, several times where it can be."""
    tools, drops = scene.case.tools, Counter[str]()
    task = ObjectTasks(tools.limits, drops, tools.choices).tasks[kind]
    known = scene.known()
    wanted, seen = 1 if kind in _ONCE else tools.count, set[Any]()
    for _ in range(wanted * _DRAWS):
        made = task(known, scene.case.rng, WORDING) if wanted else None
        if made is None:
            break
        (first, *_) = made.turns
        if kind in _OF_ONE:
            about = made.regions[markup.regions_of(first.user)[0]].box
            if about in seen:
                continue
            seen.add(about)
        turns = [(t.user, t.assistant or "") for t in made.turns]
        wanted -= scene.add(kind, turns, made.regions, again=True)
    for why in _OF_OPTIONS:
        for _ in range(drops[why]):
            scene.case.drops.add(why, kind)


def name_choice(scene: Scene) -> None:
    """Which object image answers a question of the endpoint's?"""
    if len(scene.shown) < 2:
        return
    for row in _questions(scene, "ask_object"):
        try:
            question, answer = _text_question(scene, row)
        except Unreadable as e:
            scene.case.drops.add("malformed", f"ask_object: {e}: {row!r}"[:200])
            continue
        name, regions, tools = scene.found[answer].name, scene.regions, scene.case.tools
        others = [regions[n] for n in scene.shown if scene.found[n].name != name]
        drops = Counter[str]()
        order = shuffled(others, scene.case.rng)
        options = tools.limits.apart(regions[answer], order, tools.choices, drops)
        for _ in range(drops["overlapping options"]):
            scene.case.drops.add("overlapping options", f"beside {name}")
        if len(options) < 2:
            scene.case.drops.add("too few options", question)
            continue
        order = shuffled(options, scene.case.rng)
        images = [f"<object:{regions.index(region)}>" for region in order]
        user = WORDING.draw("choice", scene.case.rng, f"{question}\n{lettered(images)}")
        scene.add("name_choice", [(user, ascii_uppercase[order.index(regions[answer])])], regions)


def _text_question(scene: Scene, row: Any) -> tuple[str, int]:
    """(question, number of the thing that answers it) of an entry."""
    question = replies.marked(replies.text_of(row, "question"), len(scene.found))
    answer = replies.number(row.get("answer"))
    if answer not in scene.shown:
        raise Unreadable("its answer is not among the choices")
    if markup.regions_of(question):
        raise Unreadable("the question holds a number")
    if steps.mention(scene.found[answer].name, question):
        raise Unreadable("the question names its answer")
    return question, answer


def object_relation(scene: Scene) -> None:
    """How things relate, numbers in questions and options replaced by object images."""
    if not scene.shown or len(scene.found) < 2:
        return
    for row in _questions(scene, "ask_relation"):
        try:
            turn = _relation_turn(scene, row)
        except Unreadable as e:
            scene.case.drops.add("malformed", f"ask_relation: {e}: {row!r}"[:200])
            continue
        if turn:
            scene.add("object_relation", [turn], scene.regions)


def _questions(scene: Scene, step: str) -> list[Any]:
    """The entries of {"questions": [...]}, as many as were asked for."""
    count = scene.case.tools.count

    def read(text: str) -> list[Any]:
        return replies.entries(text, "questions")

    return (scene.case.ask(step, scene.prompt(count), read) or [])[:count]


def _relation_turn(scene: Scene, row: Any) -> tuple[str, str] | None:
    """(question, answer) of an entry; None where its options overlap."""
    count = len(scene.found)
    question = replies.marked(replies.text_of(row, "question"), count, alone="object")
    said = replies.text_of(row, "answer")
    given = row.get("options") or []
    if not isinstance(given, list) or not all(isinstance(x, str) for x in given):
        raise Unreadable("options is no list of texts")
    options = [" ".join(x.split()) for x in given]
    images = [replies.marked(x, count, alone="object") for x in options]
    marks = [s for text in (question, *images) for s in markup.parse(text)]
    points = [k for s in marks for k in s.regions]
    if not points:
        raise Unreadable("the question points at nothing")
    if any(k not in scene.shown for k in points):
        raise Unreadable("it points at a thing that is not among the choices")
    most = scene.case.tools.choices
    if sum(s.kind == "object" for s in marks) > most + 1:
        raise Unreadable(f"it shows more than {most + 1} things")
    if not options:
        return question, replies.marked(said, count)
    if said not in options or not 2 <= len(set(options)) == len(options) <= most:
        raise Unreadable(f"its answer is not one of 2 to {most} different options")
    if scene.overlap([k for text in images for k in markup.regions_of(text)]):
        scene.case.drops.add("overlapping options", markup.strip(question))
        return None
    user = WORDING.draw("choice", scene.case.rng, f"{question}\n{lettered(images)}")
    return user, ascii_uppercase[options.index(said)]


def grounding_dialogue(scene: Scene) -> None:
    """Several rounds; half of the places in questions become object images, a few at most."""
    if len(scene.found) < 2:
        return
    values = scene.prompt(scene.case.tools.rounds)
    turns = dialogue(scene.case, "converse", values, len(scene.found))
    asked = some_shown((user for user, _ in turns), scene.case.rng, scene.shown.__contains__)
    said = [(user, answer) for user, (_, answer) in zip(asked, turns, strict=True)]
    scene.add("grounding_dialogue", said, scene.regions)


def grounded_description(scene: Scene) -> None:
    """A description with the places of what it names."""
    if not scene.found:
        return

    def read(answer: str) -> str:
        said = replies.text_of(replies.read_json(answer), "description")
        text = replies.marked(said, len(scene.found))
        if not markup.regions_of(text):
            raise Unreadable("the description points at nothing")
        return text

    text = scene.case.ask("describe", scene.prompt(1), read)
    if text:
        user = WORDING.draw("grounded_description", scene.case.rng)
        scene.add("grounded_description", [(user, text)], scene.regions)


KINDS = NAMES
BY_ENDPOINT: dict[str, Callable[[Scene], None]] = {
    "name_choice": name_choice,
    "object_relation": object_relation,
    "grounding_dialogue": grounding_dialogue,
    "grounded_description": grounded_description,
}

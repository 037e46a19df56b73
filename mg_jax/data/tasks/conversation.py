"""Which tasks there are, and conversations drawn from a mixture of them."""

from collections.abc import Iterable, Mapping

import numpy as np

from mg_jax.data.tasks import asking, describing, locating
from mg_jax.data.tasks.base import Talk, Task, draw, labelled, named
from mg_jax.data.tasks.objects import NAMED, OBJECT_TASKS
from mg_jax.data.weights import parse_weights
from mg_jax.errors import BadRecord
from mg_jax.example import Example
from mg_jax.text.instructions import Instructions

TASKS: dict[str, Task] = {
    "rec": locating.rec,
    "all_instances": locating.all_instances,
    "grounded_caption": locating.grounded_caption,
    "caption": describing.caption,
    "region_caption": describing.region_caption,
    "region_description": describing.region_description,
    "dense_referring": describing.dense_referring,
    "dense_detection": locating.dense_detection,
    "dense_detection_centres": locating.dense_detection_centres,
    "presence": asking.presence,
    "vqa": asking.vqa,
    "choice": asking.choice,
    "relation": asking.relation,
    "dialogue": asking.dialogue,
}

# What "auto" stands for. Of these the tasks that fit an example are drawn in proportion, so a set
# of questions gives questions alone, and one of boxes mostly the first, second and fifth.
AUTO: dict[str, float] = {
    "rec": 3.0,
    "all_instances": 3.0,
    "grounded_caption": 3.0,
    "caption": 1.0,
    "region_caption": 3.0,
    "region_description": 1.0,
    "dense_referring": 0.5,
    "dense_detection": 0.5,
    "presence": 1.5,
    "vqa": 3.0,
    "choice": 3.0,
    "relation": 0.5,
    "dialogue": 1.0,
}
# These ask for something else when drawn again; the others stand in a conversation once.
_AGAIN = (
    "rec", "all_instances", "region_description", "presence", "relation", "object_match",
    "place_choice", "name_choice", "object_relation",
)  # fmt: skip
# These speak of things by their names
_NAMED = (
    "rec", "all_instances", "region_caption", "dense_referring", "dense_detection",
    "dense_detection_centres", "presence", "dialogue", *NAMED,
)  # fmt: skip
_LINKED = ("relation", "object_relation")  # so do these where no relations are annotated
_TRIES = 4  # draws a round until a conversation that repeats itself is left as it is


def parse_tasks(text: str, where: str = "data") -> dict[str, float]:
    """Weights of "rec*2+presence" or "auto"; later parts add to earlier ones.

    Tasks with object images, which not every system takes, have to be named, and so has what is
    not of AUTO.
    Raises UserError, beginning with `where`, for an unknown name or a weight that is none.
    """
    return parse_weights(text, dict.fromkeys((*TASKS, *OBJECT_TASKS), 0.0) | AUTO, "auto", where)


def converse(
    example: Example,
    rng: np.random.Generator,
    tasks: Mapping[str, float],
    instructions: Instructions,
    turns: int = 1,
    object_tasks: Mapping[str, Task] = OBJECT_TASKS,
) -> Example | None:
    """The example with a conversation about its annotations, or None where no task fits.

    Tasks are drawn by weight among those that fit, until the conversation has `turns` rounds (a
    task of several rounds is not cut) or the example affords no further question. The regions are
    those that the conversation points at. Determined by the state of `rng`. Raises BadRecord where
    no task fits, one of them needs names, and neither a box nor a text gives one.

    object_tasks: those of `ObjectTasks`, by thresholds of one's own.
    """
    talk, left, known = Talk(example), dict(tasks), {**TASKS, **object_tasks}
    for _ in range(_TRIES * turns):
        made = None
        while left and made is None:
            name = draw(left, rng)
            made = known[name](example, rng, instructions)
            if made is None or name not in _AGAIN:
                del left[name]
        if made is None:
            break
        for turn, record in zip(made.turns, made.meta["turns"], strict=True):
            user = talk.move(turn.user, made.regions)
            answer = talk.move(turn.assistant or "", made.regions)
            about = None if turn.about is None else [made.regions[k] for k in turn.about]
            landmark = next((made.regions[k] for k in turn.landmarks), None)
            talk.say(record["task"], user, answer, record["absent"], about, landmark)
        if len(talk.turns) >= turns:
            break
    if not talk.turns:
        _check_names(example, tasks)
    return talk.done()


def _check_names(example: Example, tasks: Iterable[str]) -> None:
    """Raises BadRecord for boxes without any name where one of the tasks needs names."""
    boxes = example.objects or example.regions
    need = [t for t in tasks if t in _NAMED or (t in _LINKED and not example.relations)]
    if boxes and need and not named(labelled(example)):
        raise BadRecord(
            f"example {example.id!r} of {example.source}: none of its {len(boxes)} boxes has a "
            f"name, which {', '.join(need)} must have: give labels, or choose other tasks"
        )

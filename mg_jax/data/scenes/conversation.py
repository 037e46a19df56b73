"""Conversations about scenes: which tasks there are, and scenes as `Example`."""

import random
from collections.abc import Mapping

from mg_jax.data.scenes import talks, tasks
from mg_jax.data.scenes.tasks import Talk, Task
from mg_jax.data.scenes.world import World, make_world, render
from mg_jax.data.weights import parse_weights
from mg_jax.errors import UserError
from mg_jax.example import Example, Region

# name: (the task, its weight in the mixture "all"). Negatives are tasks of their own where a
# locating task is evaluated by positives alone; the other tasks mix them.
TASKS: dict[str, tuple[Task, float]] = {
    "rec": (tasks.rec, 5.0),
    "rec_absent": (tasks.rec_absent, 1.5),
    "all_instances": (tasks.all_instances, 2.5),
    "all_instances_absent": (tasks.all_instances_absent, 0.8),
    "region": (tasks.region, 4.0),
    "region_detail": (tasks.region_detail, 1.0),
    "point": (tasks.point, 0.7),
    "scribble": (tasks.scribble, 0.7),
    "grounded_caption": (talks.grounded_caption, 1.5),
    "caption": (talks.caption, 0.3),
    "presence": (tasks.presence, 2.5),
    "count": (tasks.count, 0.8),
    "relation": (talks.relation, 1.0),
    "attribute": (talks.attribute, 0.8),
    "read": (tasks.read, 0.6),
    "dialogue": (talks.dialogue, 0.5),
    "object_match": (tasks.object_match, 0.0),
}
_ONCE = ("caption", "grounded_caption", "dialogue")


def parse_tasks(text: str) -> dict[str, float]:
    """Weights of "rec+presence", "rec*2+presence" or "all"; later parts add to earlier ones.

    "all" is every task with the weights of TASKS (object_match, which is written with
    `<object:k>`, has to be named). Raises UserError for an unknown name or a weight that is none.
    """
    return parse_weights(text, {n: w for n, (_, w) in TASKS.items()}, "all", "scenes")


def write_talk(
    world: World, weights: Mapping[str, float], turns: int, rng: random.Random
) -> Talk | None:
    """A conversation of at least `turns` turns where the scene affords them, else of fewer; None
    where it affords none. A dialogue goes on to its own end."""
    talk = Talk(world, rng)
    names = list(weights)
    left = dict(weights)
    for _ in range(6 * turns):
        if len(talk.turns) >= turns or not any(left.values()):
            break
        name = rng.choices(names, [left[n] for n in names], k=1)[0]
        if TASKS[name][0](talk) and name in _ONCE and len(names) > 1:
            left[name] = 0.0
    return talk if talk.turns else None


def scene_example(
    seed: int,
    index: int,
    *,
    width: int = 224,
    height: int = 224,
    tasks: Mapping[str, float] | None = None,
    turns: int = 1,
    **options,
) -> Example:
    """Scene `index` of a seed with a conversation, determined by its arguments alone.

    tasks: weights by task name, or None for no conversation (detection). turns: questions a
    conversation. options: of `make_world`. The picture is drawn when `pixels()` is called.

    meta: "scene" (seed, index), "objects" (attributes of every thing, as `Example.objects`),
    "turns" (a record a turn: task, answer, absent, targets = regions that the answer must ground,
    object = the thing it is about, refers = regions in the question, and more by task); the
    record of the first turn is repeated at the top.
    Raises UserError where no scene of this number affords any of the tasks.
    """
    for attempt in range(60):
        number = index + attempt * 10_000_019 * 2  # even, so that a scene stays odd or even
        world = make_world(seed, number, width, height, **options)
        if not tasks:
            talk = Talk(world, random.Random(0))
            break
        rng = random.Random(f"{seed}:{number}:{turns}:{sorted(tasks.items())}:talk")
        talk = write_talk(world, tasks, turns, rng)
        if talk is not None:
            break
    else:
        raise UserError(
            f"scenes: no scene fits tasks={'+'.join(tasks or ())} with these options: "
            "raise max_objects or the size"
        )
    meta = dict(talk.records[0]) if talk.records else {}
    meta.update(
        scene=(seed, number),
        objects=[thing.attributes() for thing in world.things],
        turns=talk.records,
    )
    return Example(
        image=Drawing(world),
        width=width,
        height=height,
        regions=tuple(talk.regions),
        turns=tuple(talk.turns),
        id=f"scenes-{seed}-{index}",
        source="scenes",
        objects=tuple(Region.from_box(t.box, label=t.name) for t in world.things),
        meta=meta,
    )


class Drawing:
    """The picture of a world, drawn when called; a class so that examples can be pickled."""

    def __init__(self, world: World):
        self.world = world

    def __call__(self):
        """uint8 RGB [height, width, 3]."""
        return render(self.world)

"""Conversations about scenes: which tasks there are, and scenes as `Example`."""

import random
from collections.abc import Callable, Mapping

from mg_jax.data.scenes import objects, talks, tasks
from mg_jax.data.scenes.detect import detections
from mg_jax.data.scenes.film import FILM_TASKS, FilmTalk, make_film
from mg_jax.data.scenes.tasks import Talk, Task
from mg_jax.data.scenes.world import World, make_world, render
from mg_jax.data.tasks.objects import OBJECT_TASKS
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
    "mask": (tasks.mask, 0.0),
    "which_box": (tasks.which_box, 0.0),
    "which_point": (tasks.which_point, 0.0),
    "which_free": (tasks.which_free, 0.0),
    "object_match": (tasks.object_match, 0.0),
    **{name: (objects.task(name), 0.0) for name in OBJECT_TASKS if name != "object_match"},
}
_ONCE = (
    "caption", "grounded_caption", "dialogue", "moved", "grounding_dialogue",
    "grounded_description",
)  # fmt: skip


def parse_tasks(text: str, video: bool = False) -> dict[str, float]:
    """Weights of "rec+presence", "rec*2+presence" or "all"; later parts add to earlier ones.

    "all" is every task with the weights of TASKS (those without one, as most of
    `mg_jax.data.tasks.objects`, have to be named), of videos those of FILM_TASKS. Raises UserError
    for an unknown name, a task of the other kind, or a weight that is none.
    """
    known, other = (FILM_TASKS, TASKS) if video else (TASKS, FILM_TASKS)
    for part in text.split("+"):
        name = part.partition("*")[0].strip()
        if name in other and name not in known:
            mend = "leave frames out" if video else "add frames=8"
            kind = "pictures" if video else "videos"
            raise UserError(f"scenes: task {name} is about {kind}: {mend}")
    return parse_weights(text, {n: w for n, (_, w) in known.items()}, "all", "scenes")


def write_talk(talk: Talk, weights: Mapping[str, float], turns: int) -> Talk | None:
    """The conversation with at least `turns` turns where the scene affords them, else fewer; None
    where it affords none. A dialogue goes on to its own end."""
    ask: Mapping[str, tuple[Callable[..., bool], float]] = TASKS
    if isinstance(talk, FilmTalk):
        ask = FILM_TASKS
    rng = talk.rng
    names = list(weights)
    left = dict(weights)
    for _ in range(6 * turns):
        if len(talk.turns) >= turns or not any(left.values()):
            break
        name = rng.choices(names, [left[n] for n in names], k=1)[0]
        if ask[name][0](talk) and name in _ONCE and len(names) > 1:
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
    frames: int = 0,
    named: bool = False,
    shown: bool = False,
    **options,
) -> Example:
    """Scene `index` of a seed with a conversation, determined by its arguments alone.

    tasks: weights by task name, or None for no conversation (detection). turns: questions a
    conversation. frames: of a video of the scene instead of its picture; 0, or at least 2. named,
    shown: of `Talk`. options: of `make_world`. The picture is drawn when `pixels()` is called, the
    video at `frames()`.

    meta: "scene" (seed, index), "objects" (attributes of every thing, as `Example.objects`),
    "turns" (a record a turn: task, answer, absent, targets = regions that the answer must ground,
    object = the thing it is about, refers = regions in the question, and more by task); the
    record of the first turn is repeated at the top; "detections" (`detect.detections`; of a video
    {"frames": [one for each frame]}); of a video "moves", the direction of every thing, "" of one
    that stays, and "ends", its box in the last frame, None where it is out of sight there.
    Raises UserError where no scene of this number affords any of the tasks.
    """
    for attempt in range(600):  # in a small picture few words can be read
        number = index + attempt * 10_000_019 * 2  # even, so that a scene stays odd or even
        world = make_world(seed, number, width, height, **options)
        film = None
        if frames:
            film = make_film(world, frames, random.Random(f"{seed}:{number}:film"))
            world = film.worlds[0]
        key = f"{seed}:{number}:{turns}:{sorted(tasks.items())}:talk" if tasks else 0
        rng = random.Random(key)
        talk = FilmTalk(film, rng, named, shown) if film else Talk(world, rng, named, shown)
        if not tasks or write_talk(talk, tasks, turns) is not None:
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
    rng = random.Random(f"{seed}:{number}:detections")
    if film:
        meta["moves"] = [film.moves.get(i, "") for i in range(len(world.things))]
        ends = {thing.key: thing.box for thing in film.worlds[-1].things}
        meta["ends"] = [ends.get(thing.key) for thing in world.things]
        meta["detections"] = {"frames": [detections(at, rng) for at in film.worlds]}
    else:
        meta["detections"] = detections(world, rng)
    return Example(
        image=None if film else Drawing(world),
        width=width,
        height=height,
        regions=tuple(talk.regions),
        turns=tuple(talk.turns),
        id=f"scenes-{seed}-{index}" + (f"-{frames}-frames" if film else ""),
        source="scenes",
        objects=tuple(Region.from_box(t.box, label=t.name) for t in world.things),
        video=film or "",
        meta=meta,
    )


class Drawing:
    """The picture of a world, drawn when called; a class so that examples can be pickled."""

    def __init__(self, world: World):
        self.world = world

    def __call__(self):
        """uint8 RGB [height, width, 3]."""
        return render(self.world)

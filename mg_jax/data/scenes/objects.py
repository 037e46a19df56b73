"""Questions about scenes with object images: those of `mg_jax.data.tasks.objects`, as they are."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mg_jax.data.scenes.expressions import unique_expression
from mg_jax.data.scenes.tasks import Talk
from mg_jax.data.tasks.objects import OBJECT_TASKS
from mg_jax.example import Example, Expression, Region
from mg_jax.text import instructions, markup

_WORDING = instructions.get("tiny_grounding_gpt")


def annotated(talk: Talk) -> Example:
    """The scene as an annotated picture: boxes with names, and an expression of every thing that
    has one of its own."""
    regions = tuple(Region.from_box(t.box, label=t.name) for t in talk.things)
    found = [unique_expression(talk.world, i, talk.rng) for i in range(len(talk.things))]
    said = tuple(Expression(f"the {e.text}", (i,)) for i, e in enumerate(found) if e)
    return Example(
        None, talk.world.width, talk.world.height, regions, objects=regions, expressions=said,
        source="scenes",
    )  # fmt: skip


def task(name: str) -> Callable[[Talk], bool]:
    """The task of that name about a scene, as `scenes.tasks` has them."""

    def ask(talk: Talk) -> bool:
        rng = np.random.default_rng(talk.rng.getrandbits(64))
        made = OBJECT_TASKS[name](annotated(talk), rng, _WORDING)
        if made is None:
            return False
        things = {Region.from_box(t.box).box: i for i, t in enumerate(talk.things)}
        places = [things[region.box] for region in made.regions]

        def moved(text: str) -> str:
            return markup.format(
                replace(s, regions=tuple(talk.box(places[k]) for k in s.regions))
                for s in markup.parse(text)
            )

        told = False
        for turn, record in zip(made.turns, made.meta["turns"], strict=True):
            user, said = moved(turn.user), moved(turn.assistant or "")
            more = {"options": record["options"]} if "options" in record else {}
            targets = list(dict.fromkeys(markup.regions_of(said)))
            refers = list(dict.fromkeys(markup.regions_of(user)))
            about = None if turn.about is None else [places[k] for k in turn.about]
            landmark = next((places[k] for k in turn.landmarks), None)
            told |= talk.say(
                name, user, said, markup.strip(said), about, landmark, targets=targets,
                refers=refers, **more,
            )  # fmt: skip
        return told

    return ask

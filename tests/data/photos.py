"""Annotated examples for the task builders: one made by hand, and scenes without turns."""

import random

from mg_jax.data.scenes import make_world, scene_example
from mg_jax.data.scenes.expressions import absent_query
from mg_jax.example import Example, Expression, Question, Region
from mg_jax.text import markup


def box(x0, y0, x1, y1, label=None):
    return Region.from_box((x0, y0, x1, y1), label=label)


DOGS = (box(0.5, 0.1, 0.7, 0.3, "dog"), box(0.1, 0.1, 0.3, 0.3, "Dog"))
SIGN, MAN = box(0.1, 0.6, 0.3, 0.9, "Stop_sign"), box(0.6, 0.6, 0.8, 0.9, "person")
LONG = "A tall man who wears a hat on his head"


def photo(**changes):
    fields = dict(
        regions=(*DOGS, SIGN, MAN),
        objects=(*DOGS, SIGN, MAN, box(0.85, 0.6, 0.95, 0.9, "umbrella")),
        crowd=(box(0, 0, 1, 0.5, "bird"),),
        absent=("cat", "toaster", "dog", "stop sign", "orange"),
        captions=("<p>Two dogs</p><r:0><r:1> near <p>a sign</p><r:2> in <p>a park</p>.", "Dogs."),
        expressions=(
            Expression("the right dog", (0,)),
            Expression("both dogs", (0, 1)),
            Expression("the thing", (2,)),
            Expression("The thing", (3,)),
            Expression("the red car", ()),
            Expression(LONG, (3,)),
            Expression("an <r:1> mark", (3,)),
        ),
        questions=(
            Question("How many dogs?", ("2", "two")),
            Question("What is <r:2>?", ("A sign",)),
            Question("Which?", ("cat",), ("dog", "cat"), "A hint."),
            Question("Why?", (" ".join(["word"] * 11),)),
            Question("Unanswered?", ()),
        ),
        relations=((3, "next to", 2), (1, "left of", 0)),
        id="photo",
    )
    return Example("photo.jpg", 20, 10, **{**fields, **changes})


def annotated(i):
    """A scene without its conversation: what readers give."""
    said = scene_example(71, i, tasks={"grounded_caption": 1.0}, width=96, height=96)
    asked = scene_example(71, i, tasks={"rec": 1.0}, width=96, height=96)
    world = make_world(*said.meta["scene"], 96, 96)
    absent = {absent_query(world, random.Random(k)).noun() for k in range(5)}
    regions = (*said.objects, *said.regions, *asked.regions)
    caption = markup.renumber(said.turns[0].assistant, len(said.objects))
    phrase = markup.parse(asked.turns[0].user)[1].text
    target = len(said.objects) + len(said.regions) + asked.meta["targets"][0]
    return Example(
        said.image, 96, 96, regions=regions, objects=said.objects, absent=tuple(sorted(absent)),
        captions=(caption,), expressions=(Expression(phrase, (target,)),),
        questions=(Question("How many?", (str(len(said.objects)),)),
                   Question("Which?", ("star",), ("moon", "star", "cup"))), id=said.id,
    )  # fmt: skip


def name(region):
    return region.label.replace("_", " ").lower()


def pointed(e, text):
    return [e.regions[k] for k in markup.regions_of(text)]

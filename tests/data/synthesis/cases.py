"""A picture with three things, an endpoint that answers at once, a detector that finds them."""

import numpy as np

from mg_jax.data.synthesis.transport import Reply
from mg_jax.example import Example, Region
from mg_jax.text import markup
from tests.data.synthesis.chat_server import oracle

PLACES = {
    "dog": (0.05, 0.3, 0.35, 0.7),
    "sofa": (0.5, 0.2, 0.95, 0.9),
    "ball": (0.1, 0.8, 0.3, 0.95),
}


class Model:
    """Stands in for an endpoint: `answer` of the messages, all of which are kept."""

    model = "stub"

    def __init__(self, answer=oracle, finish="stop"):
        self.answer, self.finish, self.asked = answer, finish, []

    def chat(self, messages, room=1.0):
        self.asked.append((messages, room))
        return Reply(self.answer(messages), self.finish, {})


def picture(**fields):
    pixels = np.full((120, 160, 3), 90, np.uint8)
    regions = tuple(Region.from_box(box, name) for name, box in PLACES.items())
    return Example(pixels, 160, 120, id="p", **({"objects": regions} | fields))


def detector(found):
    """Finds PLACES of what `found` has scores for, in pixels."""

    def look(images, names):
        (image,), (wanted,) = images, names
        scale = np.array([image.shape[1], image.shape[0]] * 2)
        hits = [(name, score) for name in wanted for score in found.get(name, ())]
        return [{
            "boxes": [(np.array(PLACES[name]) * scale).tolist() for name, _ in hits],
            "scores": [score for _, score in hits],
            "labels": [name for name, _ in hits],
        }]  # fmt: skip

    return look


def tasks_of(made):
    return [e.meta["task"] for e in made.conversations]


def dropped(case):
    return {name for name, _ in case.drops.entries}


def check(made, example):
    """Every conversation is whole: marks count in its own regions, all of which it uses."""
    for e in made.conversations:
        texts = [text for t in e.turns for text in (t.user, t.assistant)]
        used = {k for text in texts for k in markup.regions_of(text)}
        assert used == set(range(len(e.regions))) and used
        assert (e.width, e.height) == (example.width, example.height)
        assert all(r.label for r in e.objects) and not e.expressions and not e.relations
    assert len({e.id for e in made.conversations}) == len(made.conversations)

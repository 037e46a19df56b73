"""Conversations with object images, and what is asked in them."""

import re

import numpy as np

from mg_jax.data.tasks import OBJECT_TASKS
from mg_jax.text import instructions, markup

WORDING = instructions.get("tiny_grounding_gpt")
LETTERS = "ABCD"


def made(task, example, count=12, tasks=OBJECT_TASKS):
    found = [tasks[task](example, np.random.default_rng(k), WORDING) for k in range(count)]
    return [e for e in found if e is not None]


def options(e, turn=0):
    """(question without options, what each letter stands for) of a choice."""
    lines = e.turns[turn].user.split("\n")
    listed = [line for line in lines if re.match(r"[A-Z]\. ", line)]
    assert [line[0] for line in listed] == list(LETTERS[: len(listed)])
    return lines[0], [line[3:] for line in listed]


def shown(e, text):
    """The regions that a text shows as images."""
    return [e.regions[s.regions[0]] for s in markup.parse(text) if s.kind == "object"]


def share(region):
    x0, y0, x1, y1 = region.box
    return (x1 - x0) * (y1 - y0)

"""What the conversations of each system are worded like: one file a system, `get` puts them
together.

Keys are the tasks of `mg_jax.data.tasks`; a text takes at `{}`

    rec, all_instances                       <p>phrase</p>
    region_caption, region_description       <r:k>, and so nearest
    relation                                 <r:k>, and at {other} the second one
    related                                  <r:k>, and at {predicate} the relation
    relation_yes_no                          <r:k> or <object:k>, {predicate} and {other}
    object_match                             <object:k>
    place_choice                             <r:k>
    name_choice                              a phrase
    presence, presence_yes                   a noun with its article; presence_no without
    dense_referring, dense_referring_answer, dense_detection_answer     "1: ..., 2: ..."
    vqa, choice                              the question
    caption, detailed_caption, grounded_caption, dense_detection, grounded_description  nothing

Files say what is published and what is ours. `GROUNDING`, `INSTRUCTIONS` and `fill` are Groma's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mg_jax.errors import UserError
from mg_jax.text.instructions import common, ferret, groma, llava, mg_llava, tiny_grounding_gpt
from mg_jax.text.instructions.groma import GROUNDING, INSTRUCTIONS


@dataclass(frozen=True)
class Instructions:
    """The wording of one system. texts: by key, what is chosen from.

    repeats_phrase: an answer to "where is <p>a dog</p>?" says the phrase again before its boxes.
    """

    name: str
    texts: Mapping[str, tuple[str, ...]]
    repeats_phrase: bool = False

    def draw(self, key: str, rng: np.random.Generator, thing: str = "", **parts: str) -> str:
        """One of the texts of a key, `thing` put in at `{}` and `parts` at their names."""
        texts = self.texts[key]
        parts[""] = thing
        return re.sub(r"\{(\w*)\}", lambda m: parts[m[1]], texts[rng.integers(len(texts))])

    def located(self, phrase: str, marks: str) -> str:
        """The answer that a phrase is at `marks` ("<r:0><r:3>")."""
        return f"<p>{phrase}</p>{marks}" if self.repeats_phrase else marks


_SHARED = common.TEXTS | llava.TEXTS
_SYSTEMS = {
    name: Instructions(name, _SHARED | texts, repeats_phrase=name == "ferret")
    for name, texts in {
        "groma": groma.TEXTS,
        "mg_llava": mg_llava.TEXTS,
        "ferret": ferret.TEXTS,
        "tiny_grounding_gpt": tiny_grounding_gpt.TEXTS,
        "llava": llava.MIX | llava.POPE,
    }.items()
}


def get(name: str) -> Instructions:
    """The instructions of a system. Raises UserError listing the known ones."""
    if name not in _SYSTEMS:
        raise UserError(f"unknown instructions {name!r}: choose from {', '.join(_SYSTEMS)}")
    return _SYSTEMS[name]


def fill(task: str, index: int, phrase: str | None = None, region: int | None = None) -> str:
    """Groma's instruction `index` of a task with `<p>phrase</p>` or `<r:region>` put in.

    Raises KeyError for an unknown task and IndexError for an index beyond its list.
    """
    text = INSTRUCTIONS[task][index]
    thing = f"<r:{region}>" if region is not None else f"<p>{phrase}</p>"
    return text.replace("{}", thing)


__all__ = ["GROUNDING", "INSTRUCTIONS", "Instructions", "fill", "get"]

"""The first three steps of the pipeline, for any recipe: what is there, where, and how it relates.

Each has two ways: by the endpoint and a detector, or by annotations and geometry.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from mg_jax.data.detections import suppress
from mg_jax.data.synthesis import filters, replies
from mg_jax.data.synthesis.case import Case
from mg_jax.data.synthesis.filters import Thing
from mg_jax.data.synthesis.replies import Unreadable
from mg_jax.data.synthesis.work import annotated
from mg_jax.errors import UserError
from mg_jax.example import Region
from mg_jax.text import words

Link = tuple[int, str, int]  # (number of a thing, relation, number of another)

SAME = 0.5  # IoU from which two boxes of one name are one thing found twice
_INSIDE = 0.95  # share of a box that lies in another one, which is at least twice as large
_LONGEST = 8  # words of a relation
_RELATIONS = 12  # asked for at most


def things(case: Case, names: Sequence[str] | None = None) -> list[Thing]:
    """The named places of a picture whose score is high enough; nothing where no name is known.

    With a detector: the boxes of `names`, by default those of `recognise`. Without: what is
    annotated.
    """
    tools = case.tools
    if tools.detector is None:
        found = annotated(case.example)
        known = bool(found)
    else:
        names = recognise(case) if names is None else names
        found, known = detect(case, names), bool(names)
    found = filters.sure(found, tools.limits, case.drops)
    if tools.detector is not None:
        for name in sorted(set(names or ()) - {thing.name for thing in found}):
            case.drops.add("not found", name)
    if not known:
        case.drops.add("no names", case.item.key)
    return found


def recognise(case: Case) -> list[str]:
    """Step 1: the names of what the picture shows."""
    tools = case.tools
    if tools.tags:
        return list(tools.tags)
    if tools.endpoint is None:
        return list(dict.fromkeys(thing.name for thing in annotated(case.example)))
    return (case.ask("recognize", {"most": tools.most}, replies.names) or [])[: tools.most]


def detect(case: Case, names: Sequence[str]) -> list[Thing]:
    """Step 2: the boxes of names by the detector, those of one name that are one thing left out;
    the most certain first."""
    tools = case.tools
    if tools.detector is None or not names:
        return []
    with tools.looking:
        (found,) = tools.detector([case.pixels], [list(names)])
    boxes = np.asarray(found["boxes"], np.float32).reshape(-1, 4)
    kept = suppress(boxes, np.asarray(found["scores"], np.float32), found["labels"], SAME)
    size = (case.example.width, case.example.height) * 2
    out = []
    for k in kept.tolist():
        share = [float(v) / s for v, s in zip(boxes[k], size, strict=True)]
        name, score = str(found["labels"][k]), float(found["scores"][k])
        try:
            out.append(Thing(name, Region.from_box(share, name, score, clip=True)))
        except UserError:
            continue  # no area inside the picture
    return out


def relate(case: Case, found: Sequence[Thing]) -> list[Link]:
    """Step 3: annotated relations, else those that the endpoint sees. Without endpoint the task
    builders go by where the boxes lie."""
    known = _annotated(case, found)
    if known or len(found) < 2 or case.tools.endpoint is None:
        return known
    values = {"objects": listed(found), "most": _RELATIONS}
    return case.ask("relate", values, lambda text: _links(case, text, len(found))) or []


def _links(case: Case, text: str, count: int) -> list[Link]:
    """The triples of an answer; single wrong ones are left out and counted."""
    out: list[Link] = []
    for row in replies.entries(text, "relations"):
        try:
            if not isinstance(row, list) or len(row) != 3:
                raise Unreadable("a relation is no triple")
            one, other = replies.number(row[0]), replies.number(row[2])
            said = words.phrase(row[1].strip(" .")) if isinstance(row[1], str) else None
            if not said or len(said.split()) > _LONGEST or one == other:
                raise Unreadable("a relation is empty, long, or of a thing to itself")
            if not (0 <= one < count and 0 <= other < count):
                raise Unreadable("a relation of things that are not in the list")
        except Unreadable as e:
            case.drops.add("malformed", f"relate: {e}: {row!r}"[:200])
            continue
        if (one, said, other) not in out:
            out.append((one, said, other))
    return out


def _annotated(case: Case, found: Sequence[Thing]) -> list[Link]:
    """The annotated relations between these things."""
    places = {thing.box: n for n, thing in enumerate(found)}
    out = []
    for one, said, other in case.example.relations:
        ends = [places.get(case.example.regions[k].box) for k in (one, other)]
        text = words.phrase(said)
        if text and ends[0] is not None and ends[1] is not None and ends[0] != ends[1]:
            out.append((ends[0], text, ends[1]))
    return out


def mention(name: str, text: str) -> re.Match[str] | None:
    """Where a text has the name as words of its own, in the singular or the plural."""
    return re.search(rf"(?<!\w){re.escape(name)}(?:s|es)?(?!\w)", text, re.IGNORECASE)


def listed(found: Sequence[Thing], only: Iterable[int] | None = None) -> str:
    """The things as lines "[1] dog (0.10, 0.20, 0.55, 0.90)", as prompts show them."""
    numbers = range(len(found)) if only is None else only
    return "\n".join(
        f"[{n + 1}] {found[n].name} ({', '.join(f'{v:.2f}' for v in found[n].box)})"
        for n in numbers
    )


def linked(found: Sequence[Thing], links: Sequence[Link]) -> str:
    """The relations as lines "[1] dog: lying on: [2] sofa", "(none is known)" without any."""
    lines = [
        f"[{i + 1}] {found[i].name}: {said}: [{k + 1}] {found[k].name}" for i, said, k in links
    ]
    return "\n".join(lines) or "(none is known)"


def lines(texts: Iterable[str]) -> str:
    """Texts as a list for a prompt."""
    return "\n".join(f"- {text}" for text in texts) or "(nothing)"

"""Groma Instruct: dialogues on pictures of Visual Genome whose answers are grounded.

    groma_instruct.json (FoundationVision/groma_instruct on the hub), one list of
    {"file_name", "width", "height", "boxes": [[x, y, width, height], ...] in pixels,
     "conversation": [{"value": question},
                      {"value": "<p>The man</p><roi><ground_box></roi> ...", "box_inds": [3]}, ...]}

Messages are questions and answers in turn. Every <ground_box> of an answer stands for the box of
the next of its `box_inds`.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from mg_jax.data.sources.base import MAX_BAD, existing, fields, sides
from mg_jax.data.sources.free_text import to_markup
from mg_jax.data.sources.grounded import GroundedSource, xyxy
from mg_jax.data.sources.json_rows import JsonRows
from mg_jax.errors import BadRecord
from mg_jax.example import Example, Turn
from mg_jax.text.instructions import GROUNDING

_MARKS = re.compile(r"(<p>|</p>|</?roi>|<(?:ground|refer)_box>|<refer_feat>)")
_BOXES = ("<ground_box>", "<refer_box>")


class GromaInstructSource(GroundedSource):
    """The dialogues as turns: phrases and boxes are neutral markup, and "[grounding]" stands before
    every question, as Groma trains them. images: the folder with the pictures of Visual Genome.

    Regions are all boxes of a record that have an area. A record whose answers point at others, or
    have more or fewer <ground_box> than box_inds, is malformed. meta: task "conversation".
    Raises UserError for a missing file, one that is no list, too many malformed records, or when
    no picture is in the folder.
    """

    form = "xywh"

    def __init__(
        self,
        file: str | Path = "",
        images: str | Path = "",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        path = existing(file, "Groma Instruct")
        super().__init__(name or path.stem, images, path, head, max_bad)
        self.fill(JsonRows(path))

    def read(self, row: Any, counts: Counter[str]) -> Example | None:
        fields(row, {"file_name": str, "boxes": list, "conversation": list})
        size = sides(row)
        places = self.places(*size, counts)
        numbers = [places.add(xyxy(box, f"boxes[{k}]")) for k, box in enumerate(row["boxes"])]
        said = [
            _marked(message, numbers, f"conversation[{k}]")
            for k, message in enumerate(row["conversation"])
        ]
        if len(said) % 2 or not said:
            raise BadRecord(f"conversation has {len(said)} messages, expected pairs")
        turns = (
            Turn(GROUNDING + asked, answered)
            for asked, answered in zip(said[::2], said[1::2], strict=True)
        )
        file = self.find(row["file_name"], counts)
        if file is None:
            return None
        number = Path(row["file_name"]).stem
        meta = {"task": "conversation"}
        return self.example(file, size, places, number, turns=tuple(turns), meta=meta)


def _marked(message: Any, numbers: list[int | None], where: str) -> str:
    """A message as neutral markup. numbers: the region of each box of the record."""
    try:
        fields(message, {"value": str})
        waiting = list(message.get("box_inds") or ())
        out = []
        for part in _MARKS.split(message["value"]):
            if part in _BOXES:
                if not waiting:
                    raise BadRecord("has more boxes in its text than box_inds")
                k = waiting.pop(0)
                if not isinstance(k, int) or not 0 <= k < len(numbers):
                    raise BadRecord(f"box_inds has {k!r}, but there are {len(numbers)} boxes")
                if numbers[k] is None:
                    raise BadRecord(f"points at boxes[{k}], which has no area")
                out.append(f"<r:{numbers[k]}>")
            elif part in ("<p>", "</p>"):
                out.append(part)
            elif not _MARKS.fullmatch(part):
                out.append(to_markup(part))
        if waiting and any(mark in message["value"] for mark in _BOXES):
            raise BadRecord("has fewer boxes in its text than box_inds")
        return "".join(out).strip()
    except (BadRecord, TypeError) as e:
        raise BadRecord(f"{where}: {e}") from None

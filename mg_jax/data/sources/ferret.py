"""GRIT, the ground-and-refer instruction data of Ferret, and data in its form.

The data set itself was not published. The form is that of apple/ml-ferret's training code and of
its example for Ferret-UI (playground/sample_data/train_data_example.json): one list of

    {"id", "image", "image_w", "image_h",
     "conversations": [{"from": "human", "value": "<image>\\nWhat is <bbox_location0>?"},
                       {"from": "gpt", "value": "A dog."}, ...],
     "box_x1y1x2y2": [[[x0, y0, x1, y1], ...] of each message] in pixels,
     "masks": [[{"size": [height, width], "counts": ...}, ...] of each message]}   not in all sets

<bbox_location0>, <bbox_location1>, ... count from 0 in each message. Kosmos-2's GrIT is another
data set, see `grit`.
"""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from mg_jax.data.sources.base import MAX_BAD, existing, fields, sides
from mg_jax.data.sources.free_text import to_markup
from mg_jax.data.sources.grounded import GroundedSource, Places
from mg_jax.data.sources.json_rows import JsonRows
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.rle import rle_runs
from mg_jax.text.instructions import GROUNDING

_LOCATION = re.compile(r"<bbox_location(\d+)>")
_ROLES = ("human", "gpt")
_EMPTY = 12  # the most that COCO's coding takes for the one run of an empty mask


class FerretGritSource(GroundedSource):
    """The dialogues as turns, `<r:k>` in the place of each location; `<image>` is taken out.

    A box of a question that has a mask is a region of that mask, in answers too; of an empty mask,
    which is counted, the box is left, as upstream does. A record
    with a location that has no box, a box that has no location or no area, or messages that do not
    alternate between human and gpt, is malformed. meta: task "conversation". request="yes" has the
    first question of each dialogue ask for coordinates in the system's own words, as Ferret-UI's
    code does for data of that kind.
    Raises UserError for a missing file, one that is no list, too many malformed records, or when
    no picture is in the folder.
    """

    def __init__(
        self,
        file: str | Path = "",
        images: str | Path = "",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
        request: str = "no",
    ):
        path = existing(file, "file in the form of Ferret's GRIT")
        if request not in ("no", "yes"):
            raise UserError(f"data {name or path.stem}: request={request}: choose no or yes")
        self._request = GROUNDING + " " if request == "yes" else ""
        super().__init__(name or path.stem, images, path, head, max_bad)
        self.fill(JsonRows(path))

    def read(self, row: Any, counts: Counter[str]) -> Example | None:
        fields(row, {"image": str, "conversations": list, "box_x1y1x2y2": list})
        size = sides(row, "image_w", "image_h")
        messages, boxes = row["conversations"], row["box_x1y1x2y2"]
        masks = row.get("masks") or [[]] * len(messages)
        for key, found in (("box_x1y1x2y2", boxes), ("masks", masks)):
            if not isinstance(found, list) or len(found) != len(messages):
                raise BadRecord(f"{key} is no list of {len(messages)}, one for each message")
        if len(messages) % 2 or not messages:
            raise BadRecord(f"conversations has {len(messages)} messages, expected pairs")
        places = self.places(*size, counts)
        said = []
        for k, message in enumerate(messages):
            try:
                fields(message, {"from": str, "value": str})
                if message["from"] != _ROLES[k % 2]:
                    raise BadRecord(f"is from {message['from']!r}, expected {_ROLES[k % 2]!r}")
                marks = self._regions(boxes[k], [] if k % 2 else masks[k], places, size)
                said.append(_marked(message["value"], marks))
            except BadRecord as e:
                raise BadRecord(f"conversations[{k}]: {e}") from None
        file = self.find(row["image"], counts)
        if file is None:
            return None
        said[0] = self._request + said[0]
        turns = tuple(Turn(q, a) for q, a in zip(said[::2], said[1::2], strict=True))
        number = Path(row["image"]).stem if row.get("id") is None else row["id"]
        return self.example(file, size, places, number, turns=turns, meta={"task": "conversation"})

    def _regions(self, boxes: Any, masks: Any, places: Places, size: tuple[int, int]) -> list[int]:
        """The number of the region of every box of a message."""
        if not isinstance(boxes, list) or not isinstance(masks, list):
            raise BadRecord("its boxes or masks are no list")
        if masks and len(masks) != len(boxes):
            raise BadRecord(f"has {len(masks)} masks for {len(boxes)} boxes")
        numbers = []
        for k, box in enumerate(boxes):
            region = places.add(box, key=f"box {k}")
            if region is None:
                raise BadRecord(f"box {k} {str(box)[:60]} has no area inside the picture")
            if masks and masks[k]:
                self._outline(masks[k], places, region, size)
            numbers.append(region)
        return numbers

    def _outline(self, mask: Any, places: Places, region: int, size: tuple[int, int]) -> None:
        """Make the region of a box that of its mask; its box stays as annotated, and alone where
        the mask is empty. Longer masks are decoded when an example is asked for; while records are
        gone through, only their size is looked at."""
        stated = mask.get("size") if isinstance(mask, dict) else None
        if stated != [size[1], size[0]]:
            raise BadRecord(f"mask has size {str(stated)[:60]}, expected {[size[1], size[0]]}")
        runs = mask.get("counts")
        if self._folder is not None and isinstance(runs, str | list) and len(runs) > _EMPTY:
            return
        try:
            if not rle_runs(mask)[2][1::2].any():
                places.counts["empty masks"] += 1
                return
            outlined = Region.from_mask(mask)
        except UserError as e:
            raise BadRecord(str(e)) from None
        places.regions[region] = replace(outlined, box=places.regions[region].box)


def _marked(text: str, regions: list[int]) -> str:
    """A message as neutral markup. Raises BadRecord when locations and boxes do not match."""
    text = text.replace("<image>", "").strip()
    named = {int(k) for k in _LOCATION.findall(text)}
    if named != set(range(len(regions))):
        raise BadRecord(f"names the locations {sorted(named)}, but has {len(regions)} boxes")
    parts = _LOCATION.split(text)
    return "".join(
        f"<r:{regions[int(part)]}>" if n % 2 else to_markup(part) for n, part in enumerate(parts)
    )

"""COCO detection annotations: one json file and a folder of pictures.

    {"images": [{"id", "file_name", "width", "height"}],
     "annotations": [{"image_id", "bbox": [x, y, width, height], "category_id", "iscrowd",
                      "segmentation": polygons or runs (see `outlines`)}],
     "categories": [{"id", "name"}]}

bbox in pixels, floats. Keys that are not named here (`area`, `license`, ...) are passed over. The
file is read in pieces, so its rows need not fit into memory; its lists may stand in any order.
Objects365, V3Det and LVIS come in the same form (`objects365`, `v3det`, `lvis`).
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.data.sources.base import MAX_BAD, Folder, existing, fields, number, real, sides
from mg_jax.data.sources.boxed import BoxedSource
from mg_jax.data.sources.json_rows import sections
from mg_jax.data.sources.outlines import check_outline, outline
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Region


class CocoSource(BoxedSource):
    """Pictures with the boxes of a COCO json.

    Boxes are cut at the border; those without area are left out and counted. Annotations with
    iscrowd=1 (or ignore=1) become `Example.crowd`. Pictures whose file is missing are left out
    and counted, as are those with a side below min_side pixels (Groma takes 32), and those
    without any box unless empty="keep". Examples have no turns.
    masks: "keep" makes regions of kind "mask" of the boxes that have an outline, read from the file
    when the example is asked for; their boxes stay as annotated. "drop" passes outlines over.
    A `file_name` with folders is looked for as it stands, then by its last part alone.
    Raises UserError for a missing or malformed file, or when no picture of it is in the folder.
    """

    form = "xywh"
    kind = "COCO"
    exhaustive = True

    def __init__(
        self,
        annotations: str | Path = "",
        images: str | Path = "",
        empty: str = "drop",
        min_side: int | str = 0,
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
        masks: str = "drop",
    ):
        self.path = existing(annotations, f"{self.kind} annotations")
        self.folder = Folder(existing(images, f"pictures of {self.path.name}", folder=True))
        super().__init__(name or self.path.stem, head, empty, max_bad)
        self._min_side = number(self.name, "min_side", min_side)
        if masks not in ("drop", "keep"):
            raise UserError(f"data {self.name}: masks={masks}: choose drop or keep")
        self._masks = masks == "keep"
        self._pictures: dict[Any, int] = {}  # number by id, -1 for what is left out
        self._claimed: dict[str, str] = {}
        self._example = ""  # of a picture without a file
        names: dict[Any, str] = {}
        total, found = 0, set()
        late = False
        for section, rows in sections(self.path):
            if rows is None:
                continue
            found.add(section)
            if section == "categories":
                names = {row["id"]: self._category(row) for _, row in self._sound(rows)}
            elif section == "images":
                total += sum(self._image(n, row) for n, row in rows)
            elif section == "annotations" and "images" in found:
                total += sum(self._annotation(n, row, rows.span) for n, row in rows)
            late |= section == "annotations" and "images" not in found
        for section in ("images", "annotations"):
            if section not in found:
                raise UserError(f"{self.path}: not {self.kind} annotations: no list {section!r}")
        if self._example and self.counts["pictures without a file"] == len(self._pictures):
            raise UserError(
                f"{self.folder.path}: holds none of the {len(self._pictures)} pictures of "
                f"{self.path}, for example {self._example}"
            )
        if late:  # the pictures stand behind the boxes
            for section, rows in sections(self.path):
                if section == "annotations" and rows is not None:
                    total += sum(self._annotation(n, row, rows.span) for n, row in rows)
        self.finish(total, names)
        del self._pictures, self._claimed, self.folder

    def _sound(self, rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        for n, row in rows:
            try:
                fields(row, {"id": (int, str), "name": str})
            except BadRecord as e:
                self.problem(f"{self.path}: categories[{n}]", str(e))
            else:
                yield n, row

    def _image(self, n: int, row: Any) -> int:
        try:
            self._add_image(row)
        except BadRecord as e:
            self.problem(f"{self.path}: images[{n}]", str(e))
        return 1

    def _add_image(self, row: Any) -> int:
        """The number of a picture, -1 for one that is left out. Raises BadRecord."""
        fields(row, {"id": (int, str)})
        places = self.places(row)
        fields(row, {"width": (int, float), "height": (int, float)})
        width, height = sides(row)
        if row["id"] in self._pictures:
            raise BadRecord(f"id {row['id']!r} is there a second time")
        place = next((p for p in places if self.folder.find(p)), "")
        file = self.folder.find(place) if place else None
        if file is None:
            self._example = self._example or places[0]
            self.counts["pictures without a file"] += 1
        elif min(width, height) < self._min_side:
            self.counts[f"pictures with a side below {self._min_side} px"] += 1
            file = None
        elif place != places[0] and "/" not in place:  # found by the last part of its name alone
            other = self._claimed.setdefault(file, places[0])
            if other != places[0]:
                raise BadRecord(f"{places[0]} is not there, {file} stands for {other}")
        picture = -1
        if file is not None:
            picture = self.add_picture(file, width, height, row["id"], places[0])
        self._pictures[row["id"]] = picture
        return picture

    def _annotation(self, n: int, row: Any, span: tuple[int, int]) -> int:
        try:
            x, y, w, h = coco_box(row)
            if self._masks and not check_outline(row.get("segmentation")):
                self.counts["outlines of boxes that have none"] += 1
        except BadRecord as e:
            self.problem(f"{self.path}: annotations[{n}]", str(e))
            return 1
        picture = self._pictures.get(row["image_id"])
        if picture is None:
            self.counts["boxes of unlisted pictures"] += 1
        elif picture >= 0:
            crowd = bool(row.get("iscrowd") or row.get("ignore"))
            kept = span if self._masks else ()
            self.add_box(picture, (x, y, x + w, y + h), row.get("category_id"), crowd, kept)
        return 1

    def outlined(
        self, regions: list[Region], spans: np.ndarray, width: int, height: int
    ) -> list[Region]:
        """With their masks, where these are kept. Raises BadRecord for a malformed one."""
        if not len(spans):
            return regions
        out = []
        with self.path.open("rb") as file:
            for region, (start, end) in zip(regions, spans.tolist(), strict=True):
                file.seek(start)
                try:
                    row = json.loads(file.read(end - start))
                    mask = outline(row.get("segmentation"), width, height)
                except (ValueError, AttributeError) as e:
                    raise BadRecord(f"{self.path}: byte {start}: {e}") from None
                out.append(replace(region, kind="mask", mask=mask) if mask else region)
        return out

    def places(self, row: dict[str, Any]) -> tuple[str, ...]:
        """Where a picture may lie in the folder, as the format has it first.

        Raises BadRecord when the record does not say.
        """
        fields(row, {"file_name": str})
        name = row["file_name"].replace("\\", "/")
        return (name, name.rpartition("/")[2]) if "/" in name else (name,)

    def _category(self, row: dict[str, Any]) -> str:
        return row["name"].strip()


def coco_box(row: Any) -> tuple[float, float, float, float]:
    """x, y, width, height of an annotation. Raises BadRecord when it is no such thing."""
    fields(row, {"image_id": (int, str), "bbox": list})
    box = row["bbox"]
    if len(box) != 4:
        raise BadRecord(f"bbox {box!r} is not x, y, width, height")
    x, y, w, h = (real(v, f"bbox {str(box)[:60]}") for v in box)
    if not isinstance(row.get("category_id"), int | float | str | None):
        raise BadRecord(f"category_id is {row['category_id']!r}")
    return x, y, w, h

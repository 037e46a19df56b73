"""COCO captions: about five descriptions of each picture.

    captions_train2017.json:
    {"images": [{"id": 391895, "file_name": "000000391895.jpg", "width": ..., "height": ...}],
     "annotations": [{"id": 770337, "image_id": 391895, "caption": ...}]}

With instances_train2017.json (see `coco.py`) the boxes of the same pictures come along.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mg_jax.data.sources.base import MAX_BAD, Folder, existing, fields, list_in, read_json
from mg_jax.data.sources.coco import CocoSource
from mg_jax.data.sources.pictured import CaptionSource
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example


class _Instances(CocoSource):
    def numbers(self) -> dict[Any, int]:
        """Number of the example by the id of its picture."""
        return {self._ids[k]: i for i, k in enumerate(self.pictures)}


class CocoCaptionSource(CaptionSource):
    """The captions of a COCO json; pictures without one are left out.

    instances: detection annotations, whose boxes become `objects` and `crowd` of the pictures
    that they name. Raises UserError for a missing or malformed file, when no picture of it is in
    the folder, or when the instances are of other pictures.
    """

    def __init__(
        self,
        file: str | Path = "",
        images: str | Path = "",
        instances: str | Path = "",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        path = existing(file, "COCO captions")
        folder = Folder(existing(images, f"pictures of {path.name}", folder=True))
        super().__init__(name or path.stem, path, folder, head, max_bad)
        data = read_json(path)
        pictures, notes = (
            list_in(data, key, path, "COCO captions") for key in ("images", "annotations")
        )
        numbers = {}
        for n, row in enumerate(pictures):
            try:
                fields(row, {"id": (int, str), "file_name": str})
                if row["id"] in numbers:
                    raise BadRecord(f"id {row['id']!r} is there a second time")
                numbers[row["id"]] = self.picture(row["id"], row["file_name"])
            except BadRecord as e:
                self.problem(f"{path}: images[{n}]", str(e))
        for n, row in enumerate(notes):
            try:
                fields(row, {"image_id": (int, str), "caption": str})
                if row["image_id"] not in numbers:
                    raise BadRecord(f"image_id {row['image_id']!r} is not in images")
                picture = numbers[row["image_id"]]
                if picture is not None:
                    self.caption(picture, row["caption"])
            except BadRecord as e:
                self.problem(f"{path}: annotations[{n}]", str(e))
        self.finish(len(pictures) + len(notes))
        self._boxes: _Instances | None = None
        if instances:
            boxes = _Instances(
                instances, images, "keep", head=head, name=self.name, max_bad=max_bad
            )
            self._rows = boxes.numbers()
            if not self._rows.keys() & set(self._keys):
                raise UserError(f"{instances}: has none of the pictures of {path}")
            self._boxes = boxes
            self.bad, self.problems = self.bad + boxes.bad, self.problems + boxes.problems
            self.counts += Counter({k: n for k, n in boxes.counts.items() if "boxes" in k})

    @property
    def frequency(self) -> Mapping[str, int]:
        """That of the instances, whose labels may be absent from a picture."""
        return self._boxes.frequency if self._boxes else {}

    def __getitem__(self, i: int) -> Example:
        example = super().__getitem__(i)
        row = self._rows.get(example.meta["image_id"]) if self._boxes else None
        if self._boxes is None or row is None:
            return example
        boxes = self._boxes[row]
        return replace(boxes, captions=example.captions, meta=boxes.meta | {"task": "captions"})

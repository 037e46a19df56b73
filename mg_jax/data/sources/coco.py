"""COCO detection annotations: one json file and a folder of pictures.

    {"images": [{"id", "file_name", "width", "height"}],
     "annotations": [{"image_id", "bbox": [x, y, width, height], "category_id", "iscrowd"}],
     "categories": [{"id", "name"}]}

bbox in pixels, floats. Objects365 and V3Det come in the same form (`objects365.py`, `v3det.py`).
"""

from pathlib import Path
from typing import Any

from mg_jax.data.sources.base import MAX_BAD, Folder, existing, fields, read_json
from mg_jax.data.sources.boxed import BoxedSource
from mg_jax.errors import BadRecord, UserError


class CocoSource(BoxedSource):
    """Pictures with the boxes of a COCO json.

    Boxes are cut at the border; those without area are left out and counted. Annotations with
    iscrowd=1 (or ignore=1) become `Example.crowd`. Pictures whose file is missing are left out
    and counted, as are those without any box unless empty="keep". Examples have no turns.
    Raises UserError for a missing or malformed file, or when no picture of it is in the folder.
    """

    def __init__(
        self,
        annotations: str | Path = "",
        images: str | Path = "",
        empty: str = "drop",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        path = existing(annotations, "COCO annotations")
        folder = Folder(existing(images, f"pictures of {path.name}", folder=True))
        super().__init__(name or path.stem, head, empty, max_bad)
        data = coco_json(path)
        labels = {c["id"]: str(c["name"]) for c in data.get("categories", [])}
        pictures = self._pictures(path, folder, data["images"])
        for n, row in enumerate(data["annotations"]):
            try:
                x, y, w, h = coco_box(row)
            except BadRecord as e:
                self.problem(f"{path}: annotations[{n}]", str(e))
                continue
            picture = pictures.get(row["image_id"])
            if picture is not None:
                crowd = bool(row.get("iscrowd") or row.get("ignore"))
                label = labels.get(row.get("category_id"))
                self.add_box(picture, (x, y, x + w, y + h), label, crowd)
        self.finish(len(data["images"]) + len(data["annotations"]))

    def _pictures(self, path: Path, folder: Folder, rows: list) -> dict[Any, int]:
        """Number of the picture by its id, of those that have a file."""
        numbers: dict[Any, int] = {}
        for n, row in enumerate(rows):
            try:
                fields(row, {"id": (int, str), "file_name": str, "width": int, "height": int})
                if row["width"] <= 0 or row["height"] <= 0:
                    raise BadRecord("width and height must be whole numbers above 0")
                if row["id"] in numbers:
                    raise BadRecord(f"id {row['id']!r} is there a second time")
            except BadRecord as e:
                self.problem(f"{path}: images[{n}]", str(e))
                continue
            file = folder.find(row["file_name"])
            if file is None:
                self.counts["pictures without a file"] += 1
            else:
                numbers[row["id"]] = self.add_picture(
                    file, row["width"], row["height"], row["id"], row["file_name"]
                )
        if self.counts["pictures without a file"] and not numbers:
            raise UserError(
                f"{folder.path}: holds none of the {len(rows)} pictures of {path}, "
                f"for example {rows[0]['file_name']}"
            )
        return numbers


def coco_box(row: Any) -> tuple[float, float, float, float]:
    """x, y, width, height of an annotation. Raises BadRecord when it is no such thing."""
    fields(row, {"image_id": (int, str), "bbox": list})
    box = row["bbox"]
    if len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        raise BadRecord(f"bbox {box!r} is not x, y, width, height")
    return box[0], box[1], box[2], box[3]


def coco_json(path: Path) -> dict[str, Any]:
    """A file with lists `images` and `annotations`. Raises UserError naming what is missing."""
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: not COCO annotations: expected an object with images")
    for section in ("images", "annotations"):
        if not isinstance(data.get(section), list):
            raise UserError(f"{path}: not COCO annotations: it has no list {section!r}")
    for n, row in enumerate(data.get("categories", [])):
        try:
            fields(row, {"id": (int, str), "name": str})
        except BadRecord as e:
            raise UserError(f"{path}: categories[{n}]: {e}") from None
    return data

"""COCO detection annotations: one json file and a folder of pictures."""

import json
from pathlib import Path

from mg_jax.data.sources.base import Folder, Source, existing, keep_empty, pixel_box
from mg_jax.errors import UserError
from mg_jax.example import Example, Region


class CocoSource(Source):
    """Pictures with the boxes of a COCO json (bbox = x, y, width, height in pixels, floats).

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
    ):
        path = existing(annotations, "COCO annotations")
        folder = Folder(existing(images, f"pictures of {path.name}", folder=True))
        super().__init__(name or path.stem, head)
        keep = keep_empty(self.name, empty)
        data = _load(path)
        labels = {c["id"]: str(c["name"]) for c in data.get("categories", [])}
        self._rows: list[dict] = []
        by_id: dict = {}
        for image in data["images"]:
            file = folder.find(image["file_name"])
            if file is None:
                self.counts["pictures without a file"] += 1
                continue
            row = {"file": file, "objects": [], "crowd": [], **image}
            by_id[image["id"]] = row
            self._rows.append(row)
        if data["images"] and not self._rows:
            raise UserError(
                f"{folder.path}: holds none of the {len(data['images'])} pictures of {path}, "
                f"for example {data['images'][0]['file_name']}"
            )
        for annotation in data["annotations"]:
            row = by_id.get(annotation["image_id"])
            if row is None:
                continue
            x, y, w, h = annotation["bbox"]
            box = (x, y, x + w, y + h)
            region = pixel_box(
                box, row["width"], row["height"], labels.get(annotation.get("category_id"))
            )
            if region is None:
                self.counts["boxes without area"] += 1
            elif annotation.get("iscrowd") or annotation.get("ignore"):
                row["crowd"].append(region)
            else:
                row["objects"].append(region)
        if not keep:
            filled = [row for row in self._rows if row["objects"]]
            self.counts["pictures without boxes"] += len(self._rows) - len(filled)
            self._rows = filled
        self.counts = +self.counts

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Example:
        row = self._rows[i]
        objects: list[Region] = row["objects"]
        return Example(
            image=row["file"],
            width=row["width"],
            height=row["height"],
            id=f"{self.name}-{row['id']}",
            source=self.name,
            objects=tuple(objects),
            crowd=tuple(row["crowd"]),
            meta={"task": "detection", "image_id": row["id"], "file_name": row["file_name"]},
        )


def _load(path: Path) -> dict:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: no valid JSON: {e}") from None
    needed = {
        "images": ("id", "file_name", "width", "height"),
        "annotations": ("image_id", "bbox"),
    }
    if not isinstance(data, dict):
        raise UserError(f"{path}: not COCO annotations: expected an object with images")
    for section, keys in needed.items():
        if not isinstance(data.get(section), list):
            raise UserError(f"{path}: not COCO annotations: it has no list {section!r}")
        for n, row in enumerate(data[section]):
            missing = [k for k in keys if not isinstance(row, dict) or k not in row]
            if missing:
                raise UserError(f"{path}: {section}[{n}] lacks {missing[0]!r}")
    for n, row in enumerate(data["images"]):
        if not all(isinstance(row[k], int) and row[k] > 0 for k in ("width", "height")):
            raise UserError(f"{path}: images[{n}]: width and height must be whole numbers above 0")
    for n, row in enumerate(data["annotations"]):
        box = row["bbox"]
        numbers = isinstance(box, list) and all(isinstance(v, int | float) for v in box)
        if not numbers or len(box) != 4:
            raise UserError(
                f"{path}: annotations[{n}]: bbox {row['bbox']!r} is not x, y, width, height"
            )
    return data

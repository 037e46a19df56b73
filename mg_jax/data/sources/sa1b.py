"""SA-1B: a json for each picture, with masks instead of names.

    sa_000020/sa_223750.jpg
    sa_000020/sa_223750.json       or both kinds of files without the folders
        {"image": {"image_id", "width", "height", "file_name"},
         "annotations": [{"id", "segmentation": {"size": [height, width], "counts": COCO RLE},
                          "bbox": [x, y, width, height], "area", "predicted_iou",
                          "stability_score", "crop_box", "point_coords"}]}

area: pixels of the mask.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.data.sources.base import (
    MAX_BAD,
    Source,
    existing,
    fields,
    number,
    read_json,
    real,
    sides,
)
from mg_jax.data.sources.measures import PICTURE
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Region
from mg_jax.rle import rle_runs

BOXES = ("mask", "bbox")


class Sa1bSource(Source):
    """Pictures of SA-1B with a box for each mask, without labels.

    folder: of the json files, or of folders of them. images: where the pictures are, if they are
    not beside the json files; folders inside are the same then.
    boxes: "mask", the tightest edges of the mask, or "bbox" as stated (a pixel narrower and lower
    at times). min_area, max_area: of the mask, in pixels; max_area=0 for no limit. min_iou,
    min_stability: of predicted_iou and stability_score. Masks beyond these are left out.
    Their objectness trains its own head by default. Only file names are listed on opening; a
    malformed json is a BadRecord when it is asked for.
    Raises UserError for a missing folder, or one that has no json with its picture.
    """

    medium = PICTURE

    def __init__(
        self,
        folder: str | Path = "",
        images: str | Path = "",
        boxes: str = "mask",
        min_area: float | str = 0,
        max_area: float | str = 0,
        min_iou: float | str = 0,
        min_stability: float | str = 0,
        head: str = "sa1b",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        self.root = existing(folder, "SA-1B folder", folder=True)
        self.images = existing(images, "SA-1B pictures", folder=True) if images else self.root
        super().__init__(name or self.root.resolve().name, head, max_bad)
        if boxes not in BOXES:
            raise UserError(f"data {self.name}: boxes={boxes}: choose from {', '.join(BOXES)}")
        self._from_mask = boxes == "mask"
        self._areas = (
            number(self.name, "min_area", min_area, float),
            number(self.name, "max_area", max_area, float) or float("inf"),
        )
        self._least = {
            "predicted_iou": number(self.name, "min_iou", min_iou, float),
            "stability_score": number(self.name, "min_stability", min_stability, float),
        }
        below = sorted(e.name for e in os.scandir(self.root) if e.is_dir())
        # bytes: eleven million names are 0.3 GB this way, 1 GB as strings
        self._stems = np.array([s for part in ("", *below) for s in self._list(part)], "S")
        self.opened(len(self._stems))
        if not len(self._stems):
            raise UserError(f"{self.root}: holds no sa_N.json with a picture sa_N.jpg")

    def _list(self, part: str) -> list[bytes]:
        """Names without ending of the json files in a folder that have a picture."""
        stems = {f[:-5] for f in os.listdir(self.root / part) if f.endswith(".json")}
        beside = self.images / part
        files = os.listdir(beside) if stems and beside.is_dir() else []
        pictures = stems & {f[:-4] for f in files if f.endswith(".jpg")}
        self.counts["pictures without a file"] += len(stems) - len(pictures)
        return [os.fsencode(os.path.join(part, s)) for s in sorted(pictures)]

    def __len__(self) -> int:
        return len(self._stems)

    def file_name(self, i: int) -> str:
        return f"{os.fsdecode(self._stems[i])}.jpg"  # without reading the json

    def __getitem__(self, i: int) -> Example:
        stem = os.fsdecode(self._stems[i])
        path = self.root / f"{stem}.json"
        try:
            return self._example(read_json(path), stem)
        except UserError as e:
            where = "" if str(path) in str(e) else f"{path}: "
            raise BadRecord(f"{where}{e}") from None
        except OSError as e:
            raise BadRecord(f"{path}: {e.strerror}") from None

    def _example(self, data: Any, stem: str) -> Example:
        fields(data, {"image": dict, "annotations": list})
        image = data["image"]
        fields(image, {"image_id": int, "width": int, "height": int})
        width, height = sides(image)
        objects = []
        for n, row in enumerate(data["annotations"]):
            try:
                region = self._region(row, width, height)
            except UserError as e:
                raise BadRecord(f"annotations[{n}]: {e}") from None
            if region is not None:
                objects.append(region)
        return Example(
            image=str(self.images / f"{stem}.jpg"),
            width=width,
            height=height,
            id=f"{self.name}-{image['image_id']}",
            source=self.name,
            objects=tuple(objects),
            meta={
                "task": "detection",
                "image_id": image["image_id"],
                "file_name": f"{Path(stem).name}.jpg",
            },
        )

    def _region(self, row: Any, width: int, height: int) -> Region | None:
        """The box of a mask, or None where it is filtered out or marks nothing."""
        number = (int, float)
        fields(row, {"bbox": list, "area": number, **dict.fromkeys(self._least, number)})
        low, high = self._areas
        if not low <= row["area"] <= high or any(row[k] < v for k, v in self._least.items()):
            return None
        if self._from_mask:
            fields(row, {"segmentation": dict})
            box = mask_box(row["segmentation"])
            if row["segmentation"]["size"] != [height, width]:
                raise BadRecord(f"mask of size {row['segmentation']['size']} is of another picture")
        else:
            if len(row["bbox"]) != 4:
                raise BadRecord(f"bbox {row['bbox']!r} is not x, y, width, height")
            x, y, w, h = (real(v, "bbox") for v in row["bbox"])
            box = (max(x, 0), max(y, 0), min(x + w, width), min(y + h, height))
        if box is None or not (box[2] > box[0] and box[3] > box[1]):
            return None
        x0, y0, x1, y1 = box
        return Region("box", (x0 / width, y0 / height, x1 / width, y1 / height))


def mask_box(rle: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """The edges of the tightest box of a mask in COCO's run-length encoding, in pixels, without
    making the mask; None for one without pixels. Raises UserError for a malformed mask."""
    height, _, runs = rle_runs(rle)
    ends = np.cumsum(runs)
    first, last = ends[0::2][: len(runs) // 2], ends[1::2] - 1  # of each run of ones, inclusive
    first, last = first[last >= first], last[last >= first]
    if not len(first):
        return None
    x0, x1 = first // height, last // height  # runs go down the columns
    whole = (x1 > x0).any()  # such a run reaches the bottom of a column and the top of the next
    y0 = 0 if whole else int((first % height).min())
    y1 = height if whole else int((last % height).max()) + 1
    return float(x0.min()), float(y0), float(x1.max() + 1), float(y1)

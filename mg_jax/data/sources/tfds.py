"""Detection sets of TensorFlow Datasets, prepared in ArrayRecord; TensorFlow is not needed.

    tfds build voc/2007 --file_format=array_record        once, where TensorFlow is installed

Needs the extra `tfds`. A set is used when it has a feature `Image` and a `Sequence` with a `BBox`
(VOC, COCO, LVIS, Open Images, KITTI, WIDER FACE, ...): labels are names of the `ClassLabel`
called label or type in that sequence; `is_crowd`, `is_difficult` and `is_group_of` mark crowds;
LVIS's `neg_category_ids` are absent, its `not_exhaustive_category_ids` handed on in meta; VOC and
COCO are labelled throughout (`Source.exhaustive`).
BBox is ymin, xmin, ymax, xmax in shares of 1 unless its `bbox_format` says otherwise. Boxes refer
to the pixels as stored, so EXIF rotation is not applied.
"""

import functools
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mg_jax.data.sources.base import MAX_BAD, Source, existing
from mg_jax.data.sources.measures import PICTURE
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Box, Example, Region
from mg_jax.text.words import noun

_CROWD = ("is_crowd", "is_difficult", "is_group_of")
_LABEL = ("label", "type")
_EXHAUSTIVE = ("coco", "voc")  # builders
_NEGATIVES, _LOOSE = "neg_category_ids", "not_exhaustive_category_ids"
_COUNTED = 5_000  # records of which labels are counted
# For each format of tfds: places of x0, y0, x1, y1, and what they are divided by
_FORMATS = {
    "REL_YXYX": (1, 0, 3, 2),
    "YXYX": (1, 0, 3, 2),
    "REL_XYXY": (0, 1, 2, 3),
    "XYXY": (0, 1, 2, 3),
    "XYWH": (0, 1, 2, 3),
}


class TfdsSource(Source):
    """Pictures with the boxes of a data set of TensorFlow Datasets.

    dataset: name, config and version, as "voc/2007:4.0.0". split: as tfds writes it, "train",
    "train+validation", "train[:80%]". data_dir: where tfds keeps prepared sets, by default its
    own choice. Nothing is downloaded or prepared here, and records are read when asked for; so
    pictures without boxes are kept. Boxes without area are left out, not counted. Where
    `exhaustive` is set, every label without any box in a picture is `absent` from it. Examples
    have no turns.
    Raises UserError without the extra, for a set that is not prepared, or is none of boxes.
    """

    medium = PICTURE

    def __init__(
        self,
        dataset: str = "",
        split: str = "train",
        data_dir: str | Path = "",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        try:
            import tensorflow_datasets as tfds
        except ImportError as e:
            raise UserError(
                f"data tfds:{dataset}: needs TensorFlow Datasets: make setup EXTRAS=tfds ({e})"
            ) from None
        if not dataset:
            raise UserError("data tfds: the name of the data set is not given, as tfds:voc/2007")
        super().__init__(name or dataset, head, max_bad)
        place = str(existing(data_dir, "tfds data_dir", folder=True)) if data_dir else None
        wrong = (ValueError, AssertionError, OSError, RuntimeError, ImportError)
        ready = f"prepare it with `tfds build {dataset} --file_format=array_record`"
        try:
            builder = tfds.builder(dataset, data_dir=place)
            features, splits = builder.info.features, sorted(builder.info.splits)
        except wrong as e:
            raise UserError(
                f"data tfds:{dataset}: {_line(e)}: {ready}, or name its folder with data_dir="
            ) from None
        self._fields(tfds, features)
        self.exhaustive = builder.name in _EXHAUSTIVE
        if not splits:
            raise UserError(
                f"data tfds:{dataset}: nothing is prepared at {builder.data_dir}: {ready}"
            )
        try:
            decoders = {self.image: tfds.decode.SkipDecoding()}
            self.rows = builder.as_data_source(split=split, decoders=decoders)
        except NotImplementedError:
            raise UserError(
                f"data tfds:{dataset}: its files at {builder.data_dir} are no ArrayRecord: {ready}"
            ) from None
        except wrong as e:
            raise UserError(
                f"data tfds:{dataset}: split={split}: {_line(e)}: it has {', '.join(splits)}"
            ) from None
        self.opened(len(self.rows))

    def _fields(self, tfds: Any, features: Any) -> None:
        """Find the features that are used. Raises UserError for a set without boxes."""
        kinds, table = tfds.features, dict(features.items())
        images = [k for k, f in table.items() if isinstance(f, kinds.Image)]
        inner = {
            key: dict(f.feature.items())
            for key, f in table.items()
            if isinstance(f, kinds.Sequence) and isinstance(f.feature, kinds.FeaturesDict)
        }
        boxes = [
            (key, k, f)
            for key, parts in inner.items()
            for k, f in parts.items()
            if isinstance(f, kinds.BBoxFeature)
        ]
        if not images or not boxes:
            raise UserError(f"data {self.name}: has no pictures with boxes, but {sorted(table)}")
        self.image = "image" if "image" in images else images[0]
        self.objects, self.box, feature = boxes[0]
        form = str(getattr(feature.bbox_format, "value", feature.bbox_format))
        if form not in _FORMATS:
            raise UserError(f"data {self.name}: BBox of format {form}: expected one of {_FORMATS}")
        self.form = form
        parts = inner[self.objects]
        named = [k for k in _LABEL if isinstance(parts.get(k), kinds.ClassLabel)]
        self.label = named[0] if named else ""
        self.labels = list(parts[self.label].names) if named else []
        self._nouns = [noun(label) for label in self.labels]
        self.crowd = [k for k in _CROWD if k in parts]
        self._negatives = _NEGATIVES in table

    @functools.cached_property
    def frequency(self) -> Mapping[str, int]:
        """In how many pictures each label stands, of an even sample of 5,000; {} where nothing is
        known to be absent."""
        if not (self.label and (self.exhaustive or self._negatives)):
            return {}
        found = Counter[int]()
        for i in range(0, len(self.rows), -(-len(self.rows) // _COUNTED)):
            found.update(set(map(int, self.rows[i][self.objects][self.label])))
        return {label: found[k] for k, label in enumerate(self.labels) if found[k]}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Example:
        row = self.rows[i]
        data = row[self.image]
        width, height = _opened(data).size
        table = row[self.objects]
        objects: list[Region] = []
        crowd: list[Region] = []
        for n, box in enumerate(table[self.box]):
            place = self._edges(np.asarray(box, np.float64), width, height)
            if place is not None:
                label = self.labels[int(table[self.label][n])] if self.label else None
                group = crowd if any(table[k][n] for k in self.crowd) else objects
                group.append(Region("box", place, label=label))
        absent, loose = (
            [self.labels[int(k)] for k in row.get(key, ())] if self.labels else []
            for key in (_NEGATIVES, _LOOSE)
        )
        if self.exhaustive and self.label:
            there = {self._nouns[int(k)] for k in table[self.label]}
            absent = [a for a, name in zip(self.labels, self._nouns, strict=True)
                      if name not in there]  # fmt: skip
        meta = {"task": "detection", "image_id": i}
        if "image/filename" in row:
            meta["file_name"] = bytes(row["image/filename"]).decode(errors="replace")
        return Example(
            image=functools.partial(_pixels, data),
            width=width,
            height=height,
            id=f"{self.name}-{i}",
            source=self.name,
            objects=tuple(objects),
            crowd=tuple(crowd),
            absent=tuple(absent),
            meta=meta | ({"not_exhaustive": loose} if loose else {}),
        )

    def _edges(self, box: np.ndarray, width: int, height: int) -> Box | None:
        """xyxy in [0, 1], cut at the border; None without area."""
        x0, y0, x1, y1 = (float(box[k]) for k in _FORMATS[self.form])
        if self.form == "XYWH":
            x1, y1 = x0 + x1, y0 + y1
        if not self.form.startswith("REL_"):
            x0, y0, x1, y1 = x0 / width, y0 / height, x1 / width, y1 / height
        cut = (max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0))
        return cut if cut[2] > cut[0] and cut[3] > cut[1] else None


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(" .:")


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except OSError as e:
        raise BadRecord(f"picture of a record: {e}") from None


def _pixels(data: bytes) -> np.ndarray:
    try:
        return np.asarray(_opened(data).convert("RGB"))
    except OSError as e:
        raise BadRecord(f"picture of a record: {e}") from None

"""Pictures with labelled boxes, kept in few bytes a box: what detection data sets become.

The largest (Objects365, Open Images) hold tens of millions of boxes; as Python objects they would
need tens of gigabytes.
"""

import functools
from array import array
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.data.sources.base import MAX_BAD, Source, keep_empty
from mg_jax.data.sources.measures import PICTURE
from mg_jax.data.sources.spaces import refuse_misfits
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Region
from mg_jax.text.words import noun
from mg_jax.vision.preprocess import image_size

_COUNTED = 2_000_000  # boxes of which labels are counted
_SAMPLE = 20_000  # boxes of which the numbers are kept as they were read, to judge their space


class BoxedSource(Source):
    """The base of detection readers: they call `add_picture`, `add_box` and at the end `finish`.

    Boxes are cut at the border; those without area are left out and counted, as are pictures
    without any box unless empty="keep". Examples have no turns.
    form: how the four numbers of a box stand in the files, for messages (see `spaces`).
    Where `exhaustive` is set, every label without object, crowd or left-out box in a picture is
    `absent` from it, unless the picture has a box without label.
    """

    form = "xyxy"
    medium = PICTURE

    def __init__(
        self,
        name: str,
        head: str = "coco",
        empty: str = "drop",
        max_bad: float | str = MAX_BAD,
    ):
        super().__init__(name, head, max_bad)
        self._keep = keep_empty(name, empty)
        self._files: list[str] = []
        self._ids: list[Any] = []
        self._names: list[str] = []
        self._sizes = array("i")
        self._keys: dict[Hashable, int] = {}
        self._boxes, self._of, self._spans = array("f"), array("i"), array("q")
        self._label, self._crowd = array("i"), array("b")
        self._absent_of, self._absent_label = array("i"), array("i")
        self._lost: dict[int, set[Any]] = {}  # labels of a picture's boxes that were left out
        self._sample, self._sample_of = array("d"), array("i")

    def add_picture(
        self, file: str, width: int, height: int, image_id: Any, file_name: str | None = None
    ) -> int:
        """A picture's number, for `add_box`. file_name: as the annotations name it.

        width, height: 0, 0 where the format does not say: boxes are then shares of 1, and the
        size is read from the file when the example is asked for.
        """
        self._files.append(file)
        self._ids.append(image_id)
        self._names.append(file_name or Path(file).name)
        self._sizes.extend((width, height))
        return len(self._files) - 1

    def add_box(
        self,
        picture: int,
        box: Any,
        label: Hashable,
        crowd: bool = False,
        span: tuple[int, int] | tuple[()] = (),
    ) -> None:
        """A box of a picture, xyxy edges as floats, in pixels or shares; cut at the border.

        One without area inside the picture is counted and left out. label: a name, None, or a key
        of the `names` that `finish` is given. span: two numbers of the reader's, for every box or
        for none; `spans` has them in the order of `boxes`.
        """
        x0, y0, x1, y1 = map(float, box)
        width, height = self._sizes[2 * picture] or 1, self._sizes[2 * picture + 1] or 1
        if len(self._sample_of) < _SAMPLE:
            self._sample.extend((x0, y0, x1, y1))
            self._sample_of.append(picture)
        cut = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
        if not (cut[2] > cut[0] and cut[3] > cut[1]):  # also when a number is not finite
            self.counts["boxes without area"] += 1
            self._lost.setdefault(picture, set()).add(label)
            return
        self._boxes.extend((cut[0] / width, cut[1] / height, cut[2] / width, cut[3] / height))
        self._of.append(picture)
        self._label.append(self._keys.setdefault(label, len(self._keys)))
        self._crowd.append(crowd)
        self._spans.extend(span)

    def add_absent(self, picture: int, labels: Iterable[Hashable]) -> None:
        """Labels (or their keys) that were looked for in the picture and are not there."""
        for label in labels:
            self._absent_of.append(picture)
            self._absent_label.append(self._keys.setdefault(label, len(self._keys)))

    def finish(self, records: int, names: Mapping[Any, str] | None = None) -> None:
        """Sort the boxes by picture, leave out empty pictures.

        records: malformed and good ones together. names: labels by the keys that `add_box` and
        `add_absent` were given; a key without one gets no label. Raises UserError when too many
        records are malformed, or when the boxes are in another space than expected.
        """
        self.opened(records)
        self._check_space()
        labels = [k if names is None else names.get(k) for k in self._keys]
        self.labels: list[Any] = list(dict.fromkeys(labels))
        number = {label: n for n, label in enumerate(self.labels)}
        self._nouns = [noun(label) for label in self.labels]
        self._lost = {
            k: {noun(key if names is None else names.get(key)) for key in keys}
            for k, keys in self._lost.items()
        }
        merged = np.array([number[label] for label in labels], np.int32)
        of = np.frombuffer(self._of, np.int32)
        order = np.argsort(of, kind="stable")
        self.boxes = np.frombuffer(self._boxes, np.float32).reshape(-1, 4)[order]
        self.label = merged[np.frombuffer(self._label, np.int32)[order]]
        self.crowd = np.frombuffer(self._crowd, np.int8)[order].astype(bool)
        spans = np.frombuffer(self._spans, np.int64).reshape(-1, 2)
        self.spans = spans[order] if len(spans) else spans
        every = np.arange(len(self._files) + 1)
        self._starts = np.searchsorted(of[order], every)
        absent = np.frombuffer(self._absent_of, np.int32)
        order = np.argsort(absent, kind="stable")
        self._absent = merged[np.frombuffer(self._absent_label, np.int32)[order]]
        self._absent_starts = np.searchsorted(absent[order], every)
        used = np.zeros(len(self._files), bool)
        used[of[np.frombuffer(self._crowd, np.int8) == 0]] = True
        if self._keep:
            used[:] = True
        self.counts["pictures without boxes"] += int((~used).sum())
        self.counts = +self.counts
        self.pictures = np.flatnonzero(used)
        del self._boxes, self._of, self._label, self._crowd, self._keys, self._spans
        del self._absent_of, self._absent_label, self._sample, self._sample_of

    def _check_space(self) -> None:
        lost = self.counts["boxes without area"]
        boxes = np.frombuffer(self._sample, np.float64).reshape(-1, 4)
        sizes = np.array(self._sizes, np.int64).reshape(-1, 2)[np.array(self._sample_of, np.int64)]
        total = len(self._of) + lost
        refuse_misfits(self.name, boxes, np.maximum(sizes, 1), self.form, lost, total)

    @functools.cached_property
    def frequency(self) -> Mapping[str, int]:
        """In how many pictures each label stands, of an even sample of about two million boxes; {}
        where nothing is known to be absent."""
        if not (self.exhaustive or len(self._absent)):
            return {}
        picture = np.repeat(np.arange(len(self._files), dtype=np.int32), np.diff(self._starts))
        some = picture % -(-len(picture) // _COUNTED) == 0
        pairs = np.unique(picture[some].astype(np.int64) * len(self.labels) + self.label[some])
        counts = np.bincount(pairs % len(self.labels), minlength=len(self.labels))
        return {name: int(n) for name, n in zip(self.labels, counts, strict=True) if name}

    def __len__(self) -> int:
        return len(self.pictures)

    def file_name(self, i: int) -> str:
        return self._names[self.pictures[i]]

    def rows(self, i: int) -> slice:
        """The rows of `boxes`, `label` and `crowd` of example i."""
        k = self.pictures[i]
        return slice(int(self._starts[k]), int(self._starts[k + 1]))

    def outlined(
        self, regions: list[Region], spans: np.ndarray, width: int, height: int
    ) -> list[Region]:
        """The regions of a picture as the reader wants them, by the `spans` of their boxes."""
        return regions

    def __getitem__(self, i: int) -> Example:
        k, rows = int(self.pictures[i]), self.rows(i)
        width, height = self._sizes[2 * k], self._sizes[2 * k + 1]
        if not width:
            try:
                width, height = image_size(self._files[k])
            except UserError as e:
                raise BadRecord(str(e)) from None
        regions = [
            Region("box", (float(b[0]), float(b[1]), float(b[2]), float(b[3])), label=label)
            for b, label in zip(
                self.boxes[rows], (self.labels[n] for n in self.label[rows]), strict=True
            )
        ]
        regions = self.outlined(regions, self.spans[rows], width, height)
        crowd = self.crowd[rows]
        present = set(self.label[rows].tolist())  # where the files contradict each other
        absent = self._absent[self._absent_starts[k] : self._absent_starts[k + 1]]
        if self.exhaustive:
            there = self._lost.get(k, set()) | {self._nouns[n] for n in present}
            names = [] if None in there else self._nouns
            absent = np.array([n for n, name in enumerate(names) if name and name not in there])
        return Example(
            image=self._files[k],
            width=width,
            height=height,
            id=f"{self.name}-{self._ids[k]}",
            source=self.name,
            objects=tuple(r for r, c in zip(regions, crowd, strict=True) if not c),
            crowd=tuple(r for r, c in zip(regions, crowd, strict=True) if c),
            absent=tuple(self.labels[n] for n in absent.tolist() if n not in present),
            meta={"task": "detection", "image_id": self._ids[k], "file_name": self._names[k]},
        )

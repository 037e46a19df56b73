"""Pictures with labelled boxes, kept in few bytes a box: what detection data sets become.

The largest (Objects365, SA-1B) hold tens of millions of boxes; as Python objects they would need
tens of gigabytes.
"""

from array import array
from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.data.sources.base import MAX_BAD, Source, keep_empty
from mg_jax.errors import UserError
from mg_jax.example import Example, Region


class BoxedSource(Source):
    """The base of detection readers: they call `add_picture`, `add_box` and at the end `finish`.

    Boxes are cut at the border; those without area are left out and counted, as are pictures
    without any box unless empty="keep". Examples have no turns.
    """

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
        self._labels: dict[str | None, int] = {}
        self._boxes, self._of = array("f"), array("i")
        self._label, self._crowd = array("i"), array("b")
        self._absent: dict[int, tuple[str, ...]] = {}
        self._outside = np.zeros(4)  # the extent of the boxes that had no area inside

    def add_picture(
        self, file: str, width: int, height: int, image_id: Any, file_name: str | None = None
    ) -> int:
        """A picture's number, for `add_box`. file_name: as the annotations name it."""
        self._files.append(file)
        self._ids.append(image_id)
        self._names.append(file_name or Path(file).name)
        self._sizes.extend((width, height))
        return len(self._files) - 1

    def add_box(self, picture: int, box: Any, label: str | None, crowd: bool = False) -> None:
        """A box of a picture, xyxy in pixels as floats, edges; cut at the border.

        One without area inside the picture is counted and left out.
        """
        x0, y0, x1, y1 = map(float, box)
        width, height = self._sizes[2 * picture], self._sizes[2 * picture + 1]
        cut = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
        if not (cut[2] > cut[0] and cut[3] > cut[1]):  # also when a number is not finite
            self.counts["boxes without area"] += 1
            self._outside = np.fmax(self._outside, (x0, y0, x1, y1))
            return
        self._boxes.extend((cut[0] / width, cut[1] / height, cut[2] / width, cut[3] / height))
        self._of.append(picture)
        self._label.append(self._labels.setdefault(label, len(self._labels)))
        self._crowd.append(crowd)

    def add_absent(self, picture: int, names: tuple[str, ...]) -> None:
        """Names that were looked for in the picture and are not there."""
        self._absent[picture] = names

    def finish(self, records: int) -> None:
        """Sort the boxes by picture, leave out empty pictures.

        records: malformed and good ones together. Raises UserError when too many are malformed,
        or when no box of the data set lies in its picture.
        """
        self.opened(records)
        of = np.frombuffer(self._of, np.int32)
        lost = self.counts["boxes without area"]
        if lost and not len(of):
            raise UserError(
                f"data {self.name}: none of its {lost} boxes has an area inside its picture, they "
                f"reach to {', '.join(f'{v:g}' for v in self._outside)}: check the order and the "
                "unit of the coordinates"
            )
        order = np.argsort(of, kind="stable")
        self.boxes = np.frombuffer(self._boxes, np.float32).reshape(-1, 4)[order]
        self.label = np.frombuffer(self._label, np.int32)[order]
        self.crowd = np.frombuffer(self._crowd, np.int8)[order].astype(bool)
        self.labels = list(self._labels)
        self._starts = np.searchsorted(of[order], np.arange(len(self._files) + 1))
        used = np.zeros(len(self._files), bool)
        used[of[np.frombuffer(self._crowd, np.int8) == 0]] = True
        if self._keep:
            used[:] = True
        self.counts["pictures without boxes"] += int((~used).sum())
        self.counts = +self.counts
        self.pictures = np.flatnonzero(used)
        del self._boxes, self._of, self._label, self._crowd, self._labels

    def __len__(self) -> int:
        return len(self.pictures)

    def rows(self, i: int) -> slice:
        """The rows of `boxes`, `label` and `crowd` of example i."""
        k = self.pictures[i]
        return slice(int(self._starts[k]), int(self._starts[k + 1]))

    def __getitem__(self, i: int) -> Example:
        k, rows = int(self.pictures[i]), self.rows(i)
        regions = [
            Region("box", (float(b[0]), float(b[1]), float(b[2]), float(b[3])), label=label)
            for b, label in zip(
                self.boxes[rows], (self.labels[n] for n in self.label[rows]), strict=True
            )
        ]
        crowd = self.crowd[rows]
        return Example(
            image=self._files[k],
            width=self._sizes[2 * k],
            height=self._sizes[2 * k + 1],
            id=f"{self.name}-{self._ids[k]}",
            source=self.name,
            objects=tuple(r for r, c in zip(regions, crowd, strict=True) if not c),
            crowd=tuple(r for r, c in zip(regions, crowd, strict=True) if c),
            absent=self._absent.get(k, ()),
            meta={"task": "detection", "image_id": self._ids[k], "file_name": self._names[k]},
        )

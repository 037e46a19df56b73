"""Open Images V4 to V7: csv files of boxes and classes, pictures by id.

    oidv6-train-annotations-bbox.csv    (train-, validation- or test-annotations-bbox.csv)
        ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,
        IsDepiction,IsInside[,XClick1X, ...]           shares of 1; flags 0, 1 or -1 (not known)
    oidv7-class-descriptions-boxable.csv               /m/011k07,Tortoise
        with the header LabelName,DisplayName, or in older files without
    oidv7-train-annotations-human-imagelabels.csv      optional, to know what is absent
        ImageID,Source,LabelName,Confidence            1: there, 0: looked for and not there
    000002b66c9c498e.jpg                               or train_0/ID.jpg, ..., train/ID.jpg

Boxes refer to the pixels as they are stored in the published copies, which have lost their EXIF
rotation (the column Rotation of the lists of pictures tells it); originals fetched from Flickr
may still have theirs and would be turned away from their boxes.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from mg_jax.data.sources.base import MAX_BAD, Folder, existing, short
from mg_jax.data.sources.boxed import BoxedSource
from mg_jax.errors import BadRecord, UserError

_BOX = ("ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax", "IsGroupOf")
_LABEL = ("ImageID", "LabelName", "Confidence")


class OpenImagesSource(BoxedSource):
    """Pictures with the boxes of Open Images.

    boxes, classes, labels: the csv files above, read row by row; labels may be left out.
    Boxes with IsGroupOf=1 become `Example.crowd`. Classes with Confidence 0 in `labels` become
    `Example.absent`, unless the picture has a box of the class; classes without a name in
    `classes` are left out there and counted.
    Pictures without a file are left out and counted, as are those without a box except of groups
    unless empty="keep", which also adds the pictures that `labels` alone names. Their sizes are
    read from the files when they are asked for. Examples have no turns.
    Rows of `classes` that are no pairs are malformed records. Raises UserError for a missing or
    unreadable file, or when none of the pictures is there.
    """

    def __init__(
        self,
        boxes: str | Path = "",
        images: str | Path = "",
        classes: str | Path = "",
        labels: str | Path = "",
        empty: str = "drop",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        path = existing(boxes, "Open Images boxes")
        self._folder = Folder(existing(images, f"pictures of {path.name}", folder=True))
        described = existing(classes, "Open Images class descriptions")
        super().__init__(name or path.stem, head, empty, max_bad)
        names = self._described(described)
        self._numbers: dict[str, int] = {}  # of pictures by id, -1 without a file
        total = self.bad
        for where, row in _rows(path, _BOX):
            total += 1
            try:
                self._box(row, names)
            except (BadRecord, ValueError, IndexError) as e:
                self.problem(where, str(e) if isinstance(e, BadRecord) else f"malformed: {row}")
        if labels:
            total += self._labels_of(existing(labels, "Open Images image labels"), names)
        if self._numbers and not self._files:
            raise UserError(
                f"{self._folder.path}: holds none of the {len(self._numbers)} pictures of {path}, "
                f"for example {next(iter(self._numbers))}.jpg"
            )
        self.finish(total, names)
        del self._numbers, self._folder

    def _described(self, path: Path) -> dict[str, str]:
        """Display name by class, of a csv with or without the header LabelName,DisplayName."""
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.reader(file)
                found = [(rows.line_num, row) for row in rows if row]
        except (UnicodeDecodeError, csv.Error) as e:
            raise UserError(f"{path}: no readable csv: {e}") from None
        if found and found[0][1] == ["LabelName", "DisplayName"]:
            del found[0]
        wrong = "expected rows of a class and its name, as /m/011k07,Tortoise"
        names = {row[0]: row[1].strip() for _, row in found if len(row) == 2}
        if not names:
            raise UserError(f"{path}: {wrong}")
        for line, row in found:
            if len(row) != 2:
                self.problem(f"{path}:{line}", f"{wrong}, found {short(row)}")
        return names

    def _box(self, row: list[str], names: dict[str, str]) -> None:
        image, label, *corners, group = row
        x0, y0, x1, y1 = map(float, corners)
        if label not in names:
            raise BadRecord(f"LabelName {label!r} is not among the class descriptions")
        picture = self._picture(image)
        if picture >= 0:
            self.add_box(picture, (x0, y0, x1, y1), label, group == "1")

    def _labels_of(self, path: Path, names: dict[str, str]) -> int:
        total = 0
        for where, row in _rows(path, _LABEL):
            total += 1
            try:
                image, label, confidence = row
                absent = float(confidence) == 0
            except ValueError:
                self.problem(where, f"malformed: {row}")
                continue
            picture = self._picture(image) if self._keep else self._numbers.get(image, -1)
            if absent and picture >= 0:
                if label in names:
                    self.add_absent(picture, (label,))
                else:
                    self.counts["absent classes without a name"] += 1
        return total

    def _picture(self, image: str) -> int:
        if image not in self._numbers:
            folders = ("", f"train_{image[:1]}/", "train/", "validation/", "test/")
            found = map(self._folder.find, (f"{folder}{image}.jpg" for folder in folders))
            file = next(filter(None, found), None)
            if file is None:
                self.counts["pictures without a file"] += 1
            self._numbers[image] = -1 if file is None else self.add_picture(file, 0, 0, image)
        return self._numbers[image]


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """("file:line", the values of these columns) of a csv with a header; short rows come short.

    Raises UserError for a file that lacks a column, or is no text.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            missing = [c for c in columns if c not in header]
            if missing:
                raise UserError(f"{path}: not of Open Images: no column {missing[0]!r} in line 1")
            places = [header.index(c) for c in columns]
            for row in rows:
                if row:
                    values = [row[k] for k in places if k < len(row)]
                    yield f"{path}:{rows.line_num}", values
    except (UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"{path}: no readable csv: {e}") from None

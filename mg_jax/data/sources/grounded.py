"""Pictures with texts about their regions: what the readers of expressions and captions share.

The largest of their files hold ten million records. These stay JSON text, in their file or packed
in memory, and become an Example when they are asked for.
"""

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mg_jax.data.sources.base import MAX_BAD, Folder, Source, existing, real
from mg_jax.data.sources.free_text import to_markup
from mg_jax.data.sources.measures import PICTURE, measure
from mg_jax.data.sources.spaces import refuse_misfits
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Expression, Region
from mg_jax.text import words
from mg_jax.vision.preprocess import image_size

_SAMPLE = 20_000  # boxes of which the numbers are kept as they were read, to judge their space
_COCO_2014 = re.compile(r"COCO_(?:train|val)2014_(?=\d{12}\.)")
_COCO_2017 = re.compile(r"\d{12}\.jpg")


class Rows(Protocol):
    """Records that are read once in order and later by number, as `json_rows.JsonRows`."""

    def scan(self) -> Iterator[tuple[str, Any, Any]]: ...
    def keep(self) -> None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Any: ...


class Packed:
    """Rows that a reader has put together, ("file: record", row), kept as JSON text in memory."""

    def __init__(self, rows: Iterable[tuple[str, Any]]):
        self._source: Iterable[tuple[str, Any]] = rows
        self._text, self._ends, self._last = bytearray(), array("q", [0]), None

    def scan(self) -> Iterator[tuple[str, Any, Any]]:
        """As `JsonRows.scan`; possible once."""
        for n, (where, row) in enumerate(self._source):
            self._last = row
            yield where, n, row
        self._source, self._last = (), None

    def keep(self) -> None:
        """Keep the row that `scan` gave last."""
        self._text += json.dumps(self._last).encode()
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> Any:
        return json.loads(self._text[self._ends[i] : self._ends[i + 1]])


class Sample:
    """The first boxes of a data set as they stand in its files, to judge their space."""

    def __init__(self) -> None:
        self.rows, self.total = array("d"), 0

    def add(self, *numbers: float) -> None:
        """x0, y0, x1, y1 of a box, width and height of its picture."""
        self.total += 1
        if self.total <= _SAMPLE:
            self.rows.extend(numbers)


class Places:
    """The regions of one example, gathered box by box; equal boxes with one label are one region.

    width, height: of the picture, or 1, 1 where boxes are shares. Boxes are cut at the border;
    those without area are counted and left out.
    """

    def __init__(
        self, width: float, height: float, counts: Counter[str], sample: Sample | None = None
    ):
        self.width, self.height, self.counts, self.sample = width, height, counts, sample
        self.regions: list[Region] = []
        self._numbers: dict[Any, int] = {}

    def add(
        self, box: Any, label: str | None = None, score: float | None = None, key: str = "box"
    ) -> int | None:
        """The number of the region of a box, xyxy; None for one without area.

        Raises BadRecord, naming `key`, for what is not four numbers.
        """
        x0, y0, x1, y1 = four(box, key)
        if self.sample is not None:
            self.sample.add(x0, y0, x1, y1, self.width, self.height)
        cut = (
            max(x0, 0.0) / self.width, max(y0, 0.0) / self.height,
            min(x1, self.width) / self.width, min(y1, self.height) / self.height,
        )  # fmt: skip
        if not (cut[2] > cut[0] and cut[3] > cut[1]):  # also when a number is not finite
            self.counts["boxes without area"] += 1
            return None
        if (cut, label) not in self._numbers:
            self._numbers[cut, label] = len(self.regions)
            self.regions.append(Region("box", cut, label=label, score=score))
        return self._numbers[cut, label]

    def add_all(self, boxes: Iterable[Any], label: str | None = None) -> tuple[int, ...]:
        """The regions of several boxes, each once."""
        found = [self.add(box, label) for box in boxes]
        return tuple(dict.fromkeys(k for k in found if k is not None))


def four(value: Any, key: str) -> tuple[float, float, float, float]:
    """Four numbers. Raises BadRecord naming the key for anything else."""
    if not (isinstance(value, list | tuple) and len(value) == 4):
        raise BadRecord(f"{key} {str(value)[:60]} is not four numbers")
    a, b, c, d = (real(v, key) for v in value)
    return a, b, c, d


def xyxy(value: Any, key: str) -> tuple[float, float, float, float]:
    """Corners of x, y, width, height. Raises BadRecord as `four`."""
    x, y, w, h = four(value, key)
    return x, y, x + w, y + h


def grounded(text: str, spans: Iterable[tuple[int, int, tuple[int, ...]]]) -> str:
    """A text as neutral markup, its spans (first character, one after the last, regions) grounded.

    Of spans that overlap the longest is marked; a span without regions is plain text, as is one
    that no mark can hold. Raises BadRecord for a span outside the text.
    """
    marked: list[tuple[int, int, str]] = []
    for start, end, regions in sorted(spans, key=lambda s: (s[0] - s[1], s[0])):
        if not 0 <= start < end <= len(text):
            raise BadRecord(f"characters {start} to {end} are not in a text of {len(text)}")
        phrase = text[start:end].strip()
        start = text.index(phrase, start)  # spaces at the ends stay outside
        end = start + len(phrase)
        if regions and all(end <= a or b <= start for a, b, _ in marked):
            written = words.phrase(phrase) if "<" in phrase else " ".join(phrase.split())
            if written:
                marks = "".join(f"<r:{k}>" for k in regions)
                marked.append((start, end, f"<p>{written}</p>{marks}"))
    out, at = [], 0
    for start, end, phrase in sorted(marked):
        out += [to_markup(text[at:start]), phrase]
        at = end
    return "".join([*out, to_markup(text[at:])]).strip()


class GroundedSource(Source):
    """The base of readers whose records hold texts about boxes of one picture.

    A reader gives its records to `fill` and says in `read` what Example one of them is. Pictures
    without a file are left out and counted. A picture's name is tried as it stands, without its
    folders, as COCO named it in 2014 and in 2017, and in the folders VG_100K and VG_100K_2.
    form: how the four numbers of a box stand in the files, for messages (see `spaces`).
    """

    form = "xyxy"
    medium = PICTURE

    def __init__(
        self,
        name: str,
        images: str | Path,
        path: Path,
        head: str = "coco",
        max_bad: float | str = MAX_BAD,
    ):
        super().__init__(name, head, max_bad)
        self.path = path
        self.root = existing(images, f"pictures of {path.name}", folder=True)
        self._folder: Folder | None = Folder(self.root)  # while the records are gone through
        self._sample: Sample | None = Sample()
        self._missing, self._found = "", False
        self._tokens = array("i")  # as of `measures`, of what is kept
        self.records = 0  # those that a reader has gone through before it calls `fill`

    def fill(self, rows: Rows) -> None:
        """Go through all records once, and keep those that give an Example. Raises UserError as
        `filled` does."""
        total = 0
        for where, _, row in rows.scan():
            total += 1
            try:
                if isinstance(row, BadRecord):
                    raise row
                example = self.read(row, self.counts)
            except BadRecord as e:
                self.problem(where, str(e))
                continue
            if example is not None:
                rows.keep()
                if example.turns:  # a reader has them in every record, or in none
                    self._tokens.append(measure(example)[1])
        self.filled(rows, total + self.records)

    def filled(self, rows: Any, total: int) -> None:
        """All `total` records have been gone through; rows[i] is what `read` takes for Example i.

        Raises UserError when too many are malformed, none is left, none of the pictures is there,
        or the boxes are in another space than expected.
        """
        self._folder, self._rows = None, rows
        self.opened(total)
        if not total:
            raise UserError(f"{self.path}: holds no record")
        missing = self.counts["pictures without a file"]
        if missing and not self._found:
            raise UserError(
                f"{self.root}: holds none of the {missing} pictures of {self.path}, for example "
                f"{self._missing}"
            )
        assert self._sample is not None
        seen = np.array(self._sample.rows).reshape(-1, 6)
        lost = self.counts["boxes without area"]
        refuse_misfits(self.name, seen[:, :4], seen[:, 4:], self.form, lost, self._sample.total)
        self.counts = +self.counts
        self._sample = None
        if not len(self._rows):
            left = ", ".join(f"{n} {reason}" for reason, n in sorted(self.counts.items()))
            raise UserError(f"{self.path}: none of its {total} records is left ({left})")

    def read(self, row: Any, counts: Counter[str]) -> Example | None:
        """The Example of a record; None when it is left out, the reason counted.

        width and height 0 stand for "as the picture's file says". Raises BadRecord.
        """
        raise NotImplementedError

    def places(self, width: float, height: float, counts: Counter[str]) -> Places:
        """No regions yet of a picture."""
        return Places(width, height, counts, self._sample)

    def find(self, name: str, counts: Counter[str]) -> str | None:
        """The file of a picture; None when there is none, which is counted."""
        last = name.replace("\\", "/").rpartition("/")[2]
        names = [name, last, _COCO_2014.sub("", last), f"VG_100K/{last}", f"VG_100K_2/{last}"]
        if _COCO_2017.fullmatch(last):
            names += [f"COCO_train2014_{last}", f"COCO_val2014_{last}"]
        if self._folder is not None:
            found = next(filter(None, map(self._folder.find, dict.fromkeys(names))), None)
        else:  # listings of millions of files are not kept
            files = (os.path.join(self.root, n) for n in dict.fromkeys(names))
            found = next(filter(os.path.isfile, files), None)
        self._found |= found is not None
        if found is None:
            counts["pictures without a file"] += 1
            self._missing = self._missing or name
        return found

    def example(
        self, file: str, size: tuple[int, int], places: Places, number: Any, **annotations: Any
    ) -> Example:
        """The Example of a picture, its regions from `places`; number: what its id ends on."""
        meta = {"file_name": os.path.basename(file)} | annotations.pop("meta", {})
        return Example(
            image=file,
            width=size[0],
            height=size[1],
            regions=tuple(places.regions),
            id=f"{self.name}-{number}",
            source=self.name,
            meta=meta,
            **annotations,
        )

    def measures(self) -> np.ndarray | None:
        if not self._tokens:
            return super().measures()
        return np.stack([np.full(len(self), PICTURE, np.int32), np.asarray(self._tokens)], 1)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Example:
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name}: index {i} of {len(self)}")
        example = self.read(self._rows[i], Counter())
        if example is None:
            raise BadRecord(f"{self.path}: record {i} has lost its picture since it was opened")
        if not example.width:
            try:
                example.width, example.height = image_size(str(example.image))
            except UserError as e:
                raise BadRecord(str(e)) from None
        return example


class PackedSource(GroundedSource):
    """The base of readers that put their records together from several places of their files.

    They give rows {"file": name, "size": [width, height], "id", "meta": {...},
    "expressions": [[text, [box, ...], label], ...], "captions": [[text, [[first character, one
    after the last, [box, ...]], ...]], ...]}, boxes xyxy in pixels, to `fill(Packed(...))`;
    with "objects": true the regions are the objects as well; null for the boxes of an expression
    of what is not in the picture. Expressions of which no box is left, and pictures of which no
    text is left, are left out and counted.
    """

    def read(self, row: Any, counts: Counter[str]) -> Example | None:
        file = self.find(row["file"], counts)
        if file is None:
            return None
        row["file"] = file  # what is kept names the file, whose spelling need not be tried again
        width, height = row["size"]
        places = self.places(width, height, counts)
        expressions = []
        for text, boxes, label in row.get("expressions", ()):
            regions = () if boxes is None else places.add_all(boxes, label)
            if (regions or boxes is None) and text.strip():
                expressions.append(Expression(to_markup(text.strip()), regions))
            else:
                counts["expressions without a box" if text.strip() else "empty expressions"] += 1
        captions = tuple(
            grounded(text, [(a, b, places.add_all(boxes)) for a, b, boxes in spans])
            for text, spans in row.get("captions", ())
        )
        if not (expressions or any(captions)):
            counts["pictures without a text"] += not row.get("expressions")
            return None
        return self.example(
            file,
            (width, height),
            places,
            row["id"],
            expressions=tuple(expressions),
            captions=tuple(filter(None, captions)),
            objects=tuple(places.regions) if row.get("objects") else (),
            meta=row["meta"],
        )

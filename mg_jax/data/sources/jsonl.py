"""mg_jax's own format: one JSON object a line, one picture with its regions and conversation.

    {"image": "photos/1.jpg",                      relative to the file's folder, or to images_dir
     "id": "1", "width": 640, "height": 480,       optional; width and height are read if absent
     "regions": [{"box": [x0, y0, x1, y1], "label": "dog", "score": 0.9},
                 {"point": [x, y]},
                 {"polygon": [[x, y], [x, y], ...]},
                 {"scribble": [[x, y], [x, y], ...]},
                 {"mask": {"size": [height, width], "counts": ...}}],
     "turns": [{"user": "Where is <p>the dog</p>?", "assistant": "<r:0>"},
               {"user": "What is <r:1>?", "assistant": "A ball.", "about": [1]},
               {"user": "Is <r:0> left of <r:1>?", "assistant": "Yes.", "about": [0, 1],
                "landmarks": [1]}],
     "objects": [{"box": [...], "label": "dog"}],   all boxes for detection, optional
     "crowd": [{"box": [...]}],                     boxes to ignore there, optional
     "captions": ["<p>A dog</p><r:0> sleeps."],     all optional: annotations that the task
     "expressions": [{"text": "the dog", "regions": [0]}],   builders make turns of,
     "questions": [{"question": "How many?", "answers": ["2"], "choices": [], "hint": ""}],
     "relations": [[0, "left of", 1]],              as `Example` explains them
     "absent": ["cat"],
     "meta": {...}}                                 handed on, optional

Coordinates are pixels of the picture as it is shown (after EXIF rotation), x right, y down, edges:
the whole picture is [0, 0, width, height]. Turns are neutral markup (`mg_jax.text.markup`), region
numbers count from 0 in `regions`. Empty lines are skipped.
"""

import contextlib
import math
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.data.sources.base import (
    HEADS,
    MAX_BAD,
    Source,
    check_choices,
    existing,
    fields,
    read_lines,
    real,
    short,
    sides,
)
from mg_jax.data.sources.measures import PICTURE, UNKNOWN, tokens_about
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Expression, Question, Region, Turn
from mg_jax.text import markup
from mg_jax.vision.preprocess import image_size

_LISTS = ("regions", "turns", "objects", "crowd", "captions", "expressions", "questions",
          "relations", "absent")  # fmt: skip
_KEYS = {"image", "id", "width", "height", "meta", *_LISTS}
_KINDS = ("box", "point", "polygon", "scribble", "mask")


class JsonlSource(Source):
    """The lines of a jsonl file (see the module). All are parsed on opening and checked, but for
    the places of their regions, for which a picture may have to be opened: a malformed one is a
    BadRecord when its line is asked for. Raises UserError for too many malformed lines, naming the
    first one with file, line and key."""

    def __init__(
        self,
        file: str | Path = "",
        images: str | Path = "",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        self.path = existing(file, "jsonl data")
        super().__init__(name or self.path.stem, head, max_bad)
        self.root = existing(images, "pictures", True) if images else self.path.parent
        self._rows: list[tuple[str, dict[str, Any]]] = []
        self._tokens = array("i")  # as of `measures`
        for where, row in read_lines(self.path):
            try:
                turns = self._check(row)
            except BadRecord as e:
                self.problem(where, str(e))
            else:
                self._rows.append((where, row))
                self._tokens.append(tokens_about(turns) if turns else UNKNOWN)
        self.opened(len(self._rows) + self.bad)
        if not self._rows:
            raise UserError(f"{self.path}: holds no line")

    def _check(self, row: Any) -> tuple[Turn, ...]:
        """The turns of a line. Raises BadRecord."""
        fields(row, {})
        if not isinstance(row.get("image"), str):
            raise BadRecord('expected "image": a file name')
        unknown = sorted(set(row) - _KEYS)
        if unknown:
            raise BadRecord(f"unknown key {unknown[0]!r}: known are {sorted(_KEYS)}")
        for key in _LISTS:
            if not isinstance(row.get(key, []), list):
                raise BadRecord(f"{key} is no list")
        meta = row.get("meta") or {}
        if not isinstance(meta, dict) or meta.get("head", self.head) not in HEADS:
            raise BadRecord(f'meta needs to be an object, its "head" {" or ".join(HEADS)}')
        sides({"width": 1, "height": 1} | row)
        example = _texts(row)
        count = len(row.get("regions", []))
        texts = [text for t in example["turns"] for text in (t.user, t.assistant or "")]
        texts += example["captions"]
        texts += [text for q in example["questions"] for text in (q.text, *q.answers)]
        try:
            for text in texts:
                markup.check(text, count, "text")
        except UserError as e:
            raise BadRecord(str(e)) from None
        named = [k for e in example["expressions"] for k in e.regions]
        named += [k for a, _, b in example["relations"] for k in (a, b)]
        named += [k for turn in example["turns"] for k in turn.about or ()]
        if any(not isinstance(k, int) or not 0 <= k < count for k in named):
            raise BadRecord(f"region {named} of {count} regions: they count from 0")
        return tuple(example["turns"])

    def __len__(self) -> int:
        return len(self._rows)

    def measures(self) -> np.ndarray:
        return np.stack([np.full(len(self), PICTURE, np.int32), np.asarray(self._tokens)], 1)

    def file_name(self, i: int) -> str:
        row = self._rows[i][1]
        return str((row.get("meta") or {}).get("file_name") or row["image"])

    def where(self, i: int) -> str:
        return self._rows[i][0]

    def raw_boxes(self, i: int) -> tuple[list[list[float]], tuple[int, int]]:
        """The boxes of a line as they stand there, not cut at the border, and its picture's size.

        What is no four numbers is left out. Raises BadRecord where the size is not given and the
        picture cannot be read.
        """
        row = self._rows[i][1]
        found = []
        for region in (*row.get("objects", ()), *row.get("regions", ())):
            box = region.get("box") if isinstance(region, Mapping) else None
            if isinstance(box, list) and len(box) == 4:
                with contextlib.suppress(BadRecord):
                    found.append([real(v, "box") for v in box])
        return found, self._size(i)

    def _size(self, i: int) -> tuple[int, int]:
        where, row = self._rows[i]
        if "width" in row and "height" in row:
            return sides(row)
        try:
            return image_size(self.root / row["image"])
        except UserError as e:
            raise BadRecord(f"{where}: {e}") from None

    def __getitem__(self, i: int) -> Example:
        where, row = self._rows[i]
        file = self.root / row["image"]
        width, height = self._size(i)
        try:
            regions, objects, crowd = (
                tuple(
                    read_region(r, width, height, f"{where}: {key}[{k}]")
                    for k, r in enumerate(row.get(key, []))
                )
                for key in ("regions", "objects", "crowd")
            )
        except UserError as e:
            raise BadRecord(str(e)) from None
        return Example(
            image=str(file),
            width=width,
            height=height,
            id=str(row.get("id", f"{self.name}-{where.rpartition(':')[2]}")),
            source=self.name,
            meta=dict(row.get("meta") or {}),
            regions=regions,
            objects=objects,
            crowd=crowd,
            **_texts(row),
        )


def _texts(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an Example that are not places. Raises BadRecord naming key and number."""
    out: dict[str, Any] = {key: [] for key in _TEXTS}
    for key, make in _TEXTS.items():
        for k, value in enumerate(row.get(key, [])):
            try:
                out[key].append(make(value))
            except BadRecord as e:
                raise BadRecord(f"{key}[{k}] {e}") from None
            except (AttributeError, KeyError, TypeError, ValueError):
                raise BadRecord(f"{key}[{k}] needs {_NEEDS[key]}") from None
    return {key: tuple(values) for key, values in out.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _turn(value: Any) -> Turn:
    said, about = value.get("assistant"), value.get("about")
    if about is not None and not isinstance(about, list):
        raise TypeError
    landmarks = value.get("landmarks", [])
    if not isinstance(landmarks, list):
        raise TypeError
    if other := [k for k in landmarks if type(k) is not int or k not in (about or ())]:
        raise BadRecord(f"landmarks={other!r} are none of about={about or []}")
    return Turn(
        _text(value["user"]),
        None if said is None else _text(said),
        None if about is None else tuple(about),
        tuple(landmarks),
    )


def _question(value: Any) -> Question:
    answers, choices = value["answers"], value.get("choices", [])
    if not (isinstance(answers, list) and isinstance(choices, list) and answers):
        raise TypeError
    check_choices(choices)
    return Question(
        _text(value["question"]),
        tuple(map(_text, answers)),
        tuple(map(_text, choices)),
        _text(value.get("hint", "")),
    )


def _relation(value: Any) -> tuple[int, str, int]:
    subject, predicate, other = value
    return subject, _text(predicate), other


_TEXTS: dict[str, Any] = {
    "turns": _turn,
    "captions": _text,
    "expressions": lambda v: Expression(_text(v["text"]), tuple(v["regions"])),
    "questions": _question,
    "relations": _relation,
    "absent": _text,
}
_NEEDS = {
    "turns": '"user": text',
    "captions": "to be text",
    "expressions": '"text" and a list "regions"',
    "questions": '"question" and a list "answers"',
    "relations": "to be [region, predicate, region]",
    "absent": "to be text",
}


def read_region(row: Any, width: int, height: int, where: str) -> Region:
    """A region of the format above, pixels of a width x height picture, cut at the border.

    Raises UserError naming `where` for anything else.
    """
    kinds = [k for k in _KINDS if isinstance(row, Mapping) and k in row]
    if len(kinds) != 1:
        raise UserError(f"{where}: expected exactly one of {', '.join(_KINDS)}")
    kind, label, score, value = kinds[0], row.get("label"), row.get("score"), row[kinds[0]]
    if label is not None and not isinstance(label, str):
        raise UserError(f"{where}: label is {short(label)}: expected text")
    try:
        if score is not None and not math.isfinite(score := real(score, "score")):
            raise UserError(f"score is {score}: expected a number")
        if kind == "mask":
            region = Region.from_mask(value, label=label, score=score)
            size = list((region.mask or {}).get("size", ()))
            if size != [height, width]:
                raise UserError(f"mask has the size {size}, its picture {[height, width]}")
            return region
        if kind == "box":
            return Region.from_box(value, label, score, clip=True, size=(width, height))
        points = [value] if kind == "point" else value
        shares = [(float(x) / width, float(y) / height) for x, y in points]
        if kind == "point":
            return Region.from_point(*shares[0], label=label)
        make = Region.from_scribble if kind == "scribble" else Region.from_polygon
        return make(shares, label=label, clip=True)
    except UserError as e:
        raise UserError(f"{where}: {e}") from None
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: {kind} {str(value)[:60]} is malformed") from None


def write_region(region: Region, width: int, height: int) -> dict[str, Any]:
    """The region as `read_region` reads it."""
    if region.kind == "mask":
        out: dict[str, Any] = {"mask": region.mask}
    elif region.kind == "box":
        x0, y0, x1, y1 = region.box
        out = {"box": [x0 * width, y0 * height, x1 * width, y1 * height]}
    else:
        points = [[x * width, y * height] for x, y in region.points]
        out = {"point": points[0]} if region.kind == "point" else {region.kind: points}
    if region.label is not None:
        out["label"] = region.label
    if region.score is not None:
        out["score"] = region.score
    return out

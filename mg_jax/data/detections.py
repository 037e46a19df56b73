"""Boxes that a detector found, read from files and made ready for MG-LLaVA (its spec 4 and 9).

A box file is upstream's: a list of entries, or an object of entries by id,

    {"id": "1", "boxes": [[x1, y1, x2, y2]], "scores": [0.9], "labels": ["dog"]}        a picture
    {"id": "a.mp4", "frames": [{"boxes": ..., "scores": ..., "labels": ...}, ...]}      a video

with boxes xyxy in pixels of the original picture, as the detector gave them: they may leave the
picture, and none has been suppressed. Entries as lines of jsonl are read too.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mg_jax.data.sources.json_rows import JsonRows
from mg_jax.errors import BadRecord, UserError, shown
from mg_jax.example import Example

CANVAS = 768  # pixels of the padded square's side in the published model
OVERLAP, LIMIT = 0.2, 100
_KEYS = ("id", "image_id", "video_id", "file_name")  # of Example.meta, in this order
_NAMED = re.compile(r'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*[{}]|\s*\{\s*\}\s*$')


@dataclass(frozen=True)
class Found:
    """What a detector found in one picture or frame.

    boxes [n, 4] float32, xyxy in pixels of the original; scores [n] float32; labels: n names.
    where: the file and entry it is of, for messages.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: tuple[str, ...]
    where: str = ""


@dataclass(frozen=True)
class Prepared:
    """Boxes as MG-LLaVA takes them.

    boxes [n, 4] float32, xyxy in units of the canvas, whole numbers; at least one: [0, 0, 0, 0]
    stands for none, and has no label. labels: names of the boxes. dropped: how many boxes were
    left out, by reason: "overlap", "limit" (of a category), "outside" (of the canvas), "slots".
    """

    boxes: np.ndarray
    labels: tuple[str, ...]
    dropped: Mapping[str, int]

    @property
    def lost(self) -> int:
        """How many were left out for want of slots, or lie outside: what the user is told."""
        return self.dropped.get("slots", 0) + self.dropped.get("outside", 0)


class Detections:
    """The entries of box files; only their places in them are kept in memory."""

    def __init__(self, paths: Sequence[Path]):
        self.path = ",".join(map(str, paths))
        self._files: list[JsonRows] = []
        self._index: dict[str, int] = {}  # by id, the number of its row among those of all files
        for path in paths:
            self._add(path)

    def _add(self, path: Path) -> None:
        """Take the entries of one more file. Raises UserError for one that differs from that of
        the same id in a file before: which picture is meant could not be told."""
        with path.open("rb") as file:
            head = file.read(4096).decode("utf-8-sig", "replace")
        named = _NAMED.match(head) is not None
        before, rows = sum(map(len, self._files)), JsonRows(path, named)
        self._files.append(rows)
        for where, key, row in rows.scan():
            if isinstance(row, BadRecord):
                raise UserError(f"{where}: {row}")
            if not isinstance(row, Mapping):
                raise UserError(f"{where}: expected an object with boxes, scores and labels")
            name = key if named else row.get("id", row.get("video"))
            if name is None or isinstance(name, (list, Mapping)):
                raise UserError(f"{where}: the entry has no id: which picture is it about?")
            if self._index.get(str(name), before) < before:
                first, entry = self._row(str(name))
                if _content(entry) != _content(row):
                    raise UserError(
                        f"{where}: id {shown(str(name))!r} has another entry in {first}: give the "
                        "pictures of one of the two files other ids (launch.boxes --list)"
                    )
            # the last one of an id counts within a file, as upstream
            self._index[str(name)] = before + len(rows)
            rows.keep()

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __contains__(self, name: Any) -> bool:
        return self._key(str(name)) is not None

    def _key(self, name: str) -> str | None:
        """The id as it stands, else without the file's ending, which is how videos are named."""
        stem = str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).name else name
        return next((n for n in (name, stem) if n in self._index), None)

    def _row(self, key: str) -> tuple[Path, Any]:
        """The file of an id and the entry there."""
        n = self._index[key]
        for rows in self._files:
            if n < len(rows):
                break
            n -= len(rows)
        return rows.path, rows[n]

    def lookup(self, name: Any) -> tuple[Found, ...]:
        """What was found in the picture of that id (one), or in the frames of that video.

        Raises BadRecord naming file and entry when there is none, or a malformed one.
        """
        key = self._key(str(name))
        if key is None:
            few = ", ".join(shown(n) for n in list(self._index)[:2])
            known = f"its {len(self)} ids: {few}, ..." if few else "it is empty"
            raise BadRecord(
                f"{self.path}: no entry for {shown(str(name))!r} ({known}): make the boxes of this "
                "picture with launch.boxes"
            )
        path, row = self._row(key)
        where = f"{path}: entry {shown(key)!r}"
        frames = row.get("frames")
        if frames is None:
            return (_found(row, where),)
        if not isinstance(frames, list) or not frames:
            raise BadRecord(f"{where}: frames is no list of what was found in each frame")
        return tuple(_found(frame, f"{where}, frame {n}") for n, frame in enumerate(frames))

    def of_file(self, path: str) -> tuple[Found, ...]:
        """`lookup` of a picture or video by its path, whose last parts are its id: launch.boxes
        leaves out those of the folder that it was given. Raises UserError where several ids fit."""
        parts = Path(os.path.abspath(path)).parts
        ends = ["/".join(parts[k:]) for k in range(1, len(parts))]
        ids = list(dict.fromkeys(filter(None, map(self._key, (path, *ends)))))
        if len(ids) > 1:
            names = ", ".join(repr(shown(n)) for n in ids)
            raise UserError(f"{self.path}: {path} may be any of {names}: say which with --boxes-id")
        return self.lookup(ids[0] if ids else PurePosixPath(path).name)

    def about(self, example: Example) -> Any:
        """`lookup` of what the example's data set calls its picture or video; without an entry
        the detections that the example brings, if any."""
        names = [str(example.meta[k]) for k in _KEYS if example.meta.get(k) is not None]
        names.append(example.id)
        name = next((n for n in names if n in self), None)
        if name is None and example.meta.get("detections") is not None:
            return example.meta["detections"]
        return self.lookup(name or names[0])


def read_box_file(path: str | Path) -> Detections:
    """The entries of a box file, or of several with commas between their names.

    Raises UserError for a file that is missing or no box file, and for files that disagree.
    """
    paths = [Path(name.strip()) for name in str(path).split(",")]
    for file in paths:
        if not file.is_file():
            raise UserError(f"{file}: no such box file: launch.boxes makes one")
    return Detections(paths)


def _content(entry: Mapping[str, Any]) -> list[Any]:
    """An entry without its id, to be compared."""
    return [entry.get(key) for key in ("boxes", "scores", "labels", "frames")]


def _found(entry: Any, where: str) -> Found:
    """An entry, checked. Raises BadRecord naming what is wrong."""
    if not isinstance(entry, Mapping):
        raise BadRecord(f"{where}: expected an object with boxes, scores and labels")
    for key in ("boxes", "scores", "labels"):
        if not isinstance(entry.get(key), list | tuple | np.ndarray):
            raise BadRecord(
                f"{where}: has no list {key!r}: each box needs a score and a label "
                "(launch.boxes writes them)"
            )
    boxes, scores, labels = (entry[key] for key in ("boxes", "scores", "labels"))
    for key, values in (("scores", scores), ("labels", labels)):
        if len(values) != len(boxes):
            raise BadRecord(f"{where}: {len(boxes)} boxes but {len(values)} {key}")
    for n, (box, score, label) in enumerate(zip(boxes, scores, labels, strict=True)):
        row = box if isinstance(box, list | tuple) else []
        if label is None or any(isinstance(x, bool) for x in (*row, score)):
            raise BadRecord(
                f"{where}: box {n} has {'no label' if label is None else 'true or false'} where a "
                f"{'text' if label is None else 'number'} is due"
            )
    return checked(boxes, scores, labels, where)


def as_found(given: Any, where: str, frames: int = 1) -> tuple[Found, ...]:
    """Detections as an example or a question brings them, one `Found` for each of `frames`.

    given: what `Detections.lookup` returns, or an entry of a box file without its id. Raises
    BadRecord, beginning with `where`.
    """
    parts = given.get("frames", given) if isinstance(given, Mapping) else given
    parts = list(parts) if isinstance(parts, list | tuple) else [parts]
    if len(parts) != frames:
        where = next((p.where for p in parts if isinstance(p, Found) and p.where), where)
        raise BadRecord(
            f"{where}: boxes of {len(parts)} pictures or frames, but {frames} are looked at: "
            f"launch.boxes --video --frames {frames} makes as many"
        )
    return tuple(
        part
        if isinstance(part, Found)
        else _found(part, where if frames == 1 else f"{where}, frame {n}")
        for n, part in enumerate(parts)
    )


def checked(boxes: Any, scores: Any, labels: Sequence[Any], where: str) -> Found:
    """Boxes xyxy in pixels, scores and labels as `Found`.

    Raises BadRecord, beginning with `where`, for what are no numbers, and for reversed boxes.
    """
    try:
        corners = np.asarray(boxes, np.float64)
        points = np.asarray(scores, np.float64)
    except (TypeError, ValueError):
        corners = points = np.zeros((1, 1))
    corners = corners.reshape(0, 4) if not corners.size else corners
    if corners.ndim != 2 or corners.shape[1] != 4 or points.shape != (len(corners),):
        raise BadRecord(f"{where}: give each box as four numbers x1,y1,x2,y2, and one score")
    if not np.isfinite(corners).all() or not np.isfinite(points).all():
        bad = ~(np.isfinite(corners).all(1) & np.isfinite(points))
        n = int(np.flatnonzero(bad)[0])
        raise BadRecord(f"{where}: box {n} or its score is no finite number")
    reversed_ = np.flatnonzero((corners[:, 2:] < corners[:, :2]).any(1))
    if reversed_.size:
        n = int(reversed_[0])
        box = ", ".join(f"{v:g}" for v in corners[n])
        raise BadRecord(f"{where}: box {n} [{box}] is reversed; corners are x1, y1, x2, y2")
    return Found(
        corners.astype(np.float32), points.astype(np.float32), tuple(str(x) for x in labels), where
    )


def prepare(
    boxes: Any,
    scores: Any,
    labels: Sequence[str],
    width: int,
    height: int,
    canvas: int = CANVAS,
    nms: float = OVERLAP,
    limit: int | None = LIMIT,
    cap: int | None = None,
    one_each: bool = False,
) -> Prepared:
    """Detected boxes of a picture of width x height as MG-LLaVA takes them, exactly as upstream.

    boxes [n, 4] xyxy in pixels of the original, scores [n]. In this order: of two boxes with one
    label and an IoU above `nms` the better stays; if more than `limit` boxes are left, the best 20
    of each label stay (5 where the limit is 50 or less; upstream fails at just 50), label by label,
    which may leave far fewer than the limit, or more; the rest is moved to the picture padded to a
    square, scaled to `canvas` and rounded; what lies outside of it is left out. limit None is no
    limit (as upstream evaluates on some benchmarks). one_each: the best box of each label stays,
    however few there are (upstream, where the text comes within 50 tokens of its longest). cap:
    ours, the slots of a batch; of more boxes those of the lowest scores are left out, and `dropped`
    tells.
    """
    found = checked(boxes, scores, labels, "detections")
    places = found.boxes + np.asarray(_margins(width, height) * 2, np.float32)
    kept = suppress(places, found.scores, found.labels, nms)
    dropped = {"overlap": len(found.labels) - len(kept)}
    fewer = _limited(kept, found.labels, limit, one_each)
    dropped["limit"] = len(kept) - len(fewer)
    side = max(width, height)
    scale = canvas / side
    # float32 before rounding, half to even, as upstream. It takes the scaled side as a whole
    # number, so for some sides (383, 588, ...) its canvas lies one unit off the picture.
    start = (int(side * scale) - canvas) // 2
    moved = np.rint(places[fewer] * np.float32(scale)) - start
    moved = np.concatenate([np.maximum(moved[:, :2], 0), np.minimum(moved[:, 2:], canvas)], 1)
    inside = (moved[:, 2:] >= 0).all(1) & (moved[:, :2] <= canvas).all(1)
    dropped["outside"] = int((~inside).sum())
    moved, fewer = moved[inside], fewer[inside]
    if cap is not None and len(fewer) > cap:
        best = np.sort(np.argsort(-found.scores[fewer], kind="stable")[:cap])
        dropped["slots"] = len(fewer) - cap
        moved, fewer = moved[best], fewer[best]
    names = tuple(found.labels[k] for k in fewer)
    none = np.zeros((1, 4), np.float32)
    counted = {reason: count for reason, count in dropped.items() if count}
    return Prepared(moved.astype(np.float32) if len(moved) else none, names, counted)


def to_canvas(boxes: Any, width: int, height: int, canvas: int = CANVAS) -> np.ndarray:
    """Boxes [n, 4] xyxy in [0, 1] of a width x height picture, such as a user gives, as float32
    [n, 4] in units of the canvas; not rounded."""
    places = np.asarray(boxes, np.float64).reshape(-1, 4) * [width, height, width, height]
    places = places + np.asarray(_margins(width, height) * 2)
    return (places * (canvas / max(width, height))).astype(np.float32)


def suppress(
    boxes: np.ndarray, scores: np.ndarray, labels: Sequence[str], overlap: float
) -> np.ndarray:
    """Numbers of the boxes that non-maximum suppression within each label keeps, best first.

    torchvision's rule: equal scores in the given order, IoU in float32 compared with `overlap` as
    float64, boxes without area suppress nothing.
    """
    order = np.argsort(-scores, kind="stable")
    numbers: dict[str, int] = {}
    kinds = np.asarray([numbers.setdefault(x, len(numbers)) for x in labels], np.int64)[order]
    boxes = boxes[order]
    size = boxes[:, 2:] - boxes[:, :2]
    area = size[:, 0] * size[:, 1]
    alive = np.ones(len(order), bool)
    for n in range(len(order)):
        if not alive[n]:
            continue
        rivals = n + 1 + np.flatnonzero(alive[n + 1 :] & (kinds[n + 1 :] == kinds[n]))
        low = np.maximum(boxes[n, :2], boxes[rivals, :2])
        both = np.maximum(np.minimum(boxes[n, 2:], boxes[rivals, 2:]) - low, np.float32(0))
        inter = both[:, 0] * both[:, 1]
        union = area[n] + area[rivals] - inter
        iou = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
        alive[rivals[iou.astype(np.float64) > overlap]] = False
    return order[alive]


def _limited(
    kept: np.ndarray, labels: Sequence[str], limit: int | None, one_each: bool
) -> np.ndarray:
    """`kept` (best first) by the limit of each label, grouped by label where the limit applies."""
    if not one_each and (limit is None or len(kept) <= limit):
        return kept
    most = 1 if one_each else 20 if limit is not None and limit > 50 else 5
    groups: dict[str, list[int]] = {}
    for k in kept.tolist():
        groups.setdefault(labels[k], []).append(k)
    return np.asarray([k for group in groups.values() for k in group[:most]], np.int64)


def _margins(width: int, height: int) -> tuple[int, int]:
    """Pixels before the picture, across and down, when it is padded to a square."""
    side = max(width, height)
    return (side - width) // 2, (side - height) // 2

"""Files of `launch.boxes`: which pictures there are, what was found so far, how many boxes.

The finished file is upstream MG-LLaVA's detector JSON (its spec 9), a list of
{"id", "boxes": [[x1, y1, x2, y2]], "scores", "labels"} or, of videos, {"id", "frames": [...]}.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mg_jax.data.detections import prepare, read_box_file
from mg_jax.data.sources.json_rows import JsonRows
from mg_jax.data.sources.video import SUFFIXES as VIDEOS
from mg_jax.data.video import PICTURES as FRAMES
from mg_jax.data.video import read_frames
from mg_jax.disk import disk_errors
from mg_jax.errors import BadRecord, UserError, shown
from mg_jax.vision.preprocess import load_image

PICTURES = (*FRAMES, ".gif", ".tif", ".tiff", ".avif")
BINS = tuple(range(10, 101, 10))  # upper ends: 1 to 10, ..., 91 to 100; none and more besides


@dataclass(frozen=True)
class Work:
    """A picture or video to look at. file: its path below `folder`; ids: the entries it makes."""

    folder: Path
    file: str
    video: bool
    ids: list[Any] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The ids as text."""
        return [str(name) for name in self.ids]

    def images(self, frames: int, notes: list[str]) -> list[np.ndarray]:
        """The picture, or the frames of the video, uint8 RGB [H, W, 3] each.

        notes: gets a line for a video that has fewer frames.
        Raises BadRecord for a file that cannot be read.
        """
        path = self.folder / self.file
        if self.video:
            return list(read_frames(path, frames, notes)[0])
        try:
            return [load_image(path)]
        except UserError as e:
            raise BadRecord(str(e)) from e


def listing(folder: Path, rows: str | None, video: bool) -> tuple[list[Work], int]:
    """(the pictures or videos of a folder or of a list in it, how many rows have none).

    Raises UserError for a folder without any, for files that are missing and for ids given twice.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if rows:
        return _listed(folder, Path(rows), video)
    files = _videos(folder) if video else _files(folder, PICTURES)
    names: dict[str, str] = {}
    for file in files:
        path = folder / file
        name = file if path.is_dir() else file[: len(file) - len(path.suffix)]
        if name in names:
            raise UserError(
                f"{folder}: {shown(names[name])} and {shown(file)} would have one id: rename one, "
                "or give ids with --list"
            )
        names[name] = file
    if not names:
        kinds = ", ".join(VIDEOS if video else PICTURES)
        hint = "" if video else "; videos need --video"
        raise UserError(f"{folder}: holds no {'video' if video else 'picture'} ({kinds}){hint}")
    return [Work(folder, file, video, [name]) for name, file in names.items()], 0


def _files(folder: Path, endings: Sequence[str]) -> list[str]:
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.lower().endswith(tuple(endings)):
                found.append((Path(parent) / name).relative_to(folder).as_posix())
    return sorted(found)


def _videos(folder: Path) -> list[str]:
    """Video files, and the lowest folders that hold pictures."""
    found = _files(folder, VIDEOS)
    frames = {Path(file).parent.as_posix() for file in _files(folder, FRAMES)}
    return sorted({*found, *(frames - {"."})})


def _listed(folder: Path, path: Path, video: bool) -> tuple[list[Work], int]:
    if not path.is_file():
        raise UserError(f"--list {path}: no such file")
    work: dict[str, Work] = {}
    files: dict[str, str] = {}  # by id
    skipped = 0
    for where, _, row in JsonRows(path).scan():
        if isinstance(row, BadRecord):
            raise UserError(f"{where}: {row}")
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: expected an object with image and id")
        name = next((row[k] for k in ("question_id", "id", "index") if k in row), None)
        file = row.get("video" if video else "image")
        if not file:
            skipped += 1
            continue
        if not isinstance(file, str) or not isinstance(name, str | int):
            raise UserError(f"{where}: expected the name of a file, and an id or question_id")
        if files.setdefault(str(name), file) != file:
            raise UserError(f"{where}: id {shown(str(name))} has two files")
        if file not in work:
            if not (folder / file).exists():
                raise UserError(f"{where}: {folder / file}: no such file")
            work[file] = Work(folder, file, video)
        if str(name) not in work[file].names:
            work[file].ids.append(name)
    if not work:
        raise UserError(f"--list {path}: names no {'video' if video else 'picture'}")
    return list(work.values()), skipped


class Part:
    """What has been found so far, in OUT.part: a line of settings, then one a picture.

    A torn last line is dropped. Raises UserError where something was found under other settings;
    `anew` drops what is there.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], anew: bool = False):
        self.path = out.with_name(out.name + ".part")
        self._done: dict[str, Any] = {}
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if anew:
                self.path.unlink(missing_ok=True)
            begun = self.path.exists() and self._read(json.loads(json.dumps(settings)))
            self._file = self.path.open("a", encoding="utf-8")
        if not begun:
            self._write({"settings": settings})

    def _read(self, settings: Any) -> bool:
        """Take what an earlier run left; False when it left not even the settings."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        os.truncate(self.path, whole)  # the rest is a torn line
        try:
            rows: list[Any] = [json.loads(line) for line in content[:whole].splitlines()]
            before = rows[0]["settings"] if rows else None
            self._done = {line["file"]: line["entry"] for line in rows[1:]}
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.path}: is not what launch.boxes left: remove it, or --overwrite"
            ) from None
        if not self._done:  # nothing is lost with its settings
            os.truncate(self.path, 0)
            return False
        if before != settings:
            keys = [k for k in settings if not before or before.get(k) != settings[k]]
            raise UserError(
                f"{self.path}: was begun with another {', '.join(keys)}: give the same options, or "
                "--overwrite to begin anew"
            )
        return True

    def _write(self, line: Mapping[str, Any]) -> None:
        with disk_errors(self.path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def __enter__(self) -> "Part":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is None:
            self.path.unlink(missing_ok=True)

    def __contains__(self, file: str) -> bool:
        return file in self._done

    def __getitem__(self, file: str) -> Any:
        return self._done[file]

    def add(self, item: Work, entry: Mapping[str, Any]) -> None:
        """Note the entry of an item, on the disk at once."""
        self._done[item.file] = entry
        self._write({"file": item.file, "entry": entry})


def write(out: Path, work: Sequence[Work], part: Part) -> None:
    """The finished file, one entry an id in the order of `work`; given its name when whole."""
    new = out.with_name(out.name + ".new")
    with disk_errors(out):
        with new.open("w", encoding="utf-8") as file:
            before = "[\n"
            for item in work:
                for name in item.ids if item.file in part else ():
                    file.write(before + json.dumps({"id": name} | dict(part[item.file])))
                    before = ",\n"
            file.write("[]\n" if before == "[\n" else "\n]\n")
        new.replace(out)


def histogram(path: str | Path) -> str:
    """A table of how many pictures (frames, of videos) have how many boxes, as found and as they
    are left by suppression and limits. Raises UserError for a malformed file."""
    file = read_box_file(path)
    counts: list[tuple[int, int]] = []
    for name in file:
        for found in file.lookup(name):
            n = len(found.labels)
            counts.append((n, _left(found) if n else 0))
    if not counts:
        return f"{path}: no pictures"
    array = np.asarray(counts)
    bins = {0: "0"} | {high: f"{high - 9}-{high}" for high in BINS} | {None: f"over {BINS[-1]}"}
    lines = [f"{'boxes':>9}  {'as found':>16}  {'suppressed and limited':>22}"]
    low = -1
    for high, name in bins.items():
        inside = (array > low) & (array <= (array.max() if high is None else high))
        shares = [f"{inside[:, k].sum()} ({inside[:, k].mean():.1%})" for k in (0, 1)]
        lines.append(f"{name:>9}  {shares[0]:>16}  {shares[1]:>22}")
        low = high or 0
    mean, most = array.mean(0), array.max(0)
    lines.append(f"{'mean':>9}  {mean[0]:>16.1f}  {mean[1]:>22.1f}")
    lines.append(f"{'most':>9}  {most[0]:>16}  {most[1]:>22}")
    return "\n".join(lines)


def _left(found: Any) -> int:
    """How many boxes are read of an entry. What lies outside is unknown here: the file does not
    tell the size of its picture, so that boxes make their own canvas."""
    side = max(int(np.ceil(found.boxes.max(initial=1.0))), 1)
    prepared = prepare(found.boxes, found.scores, found.labels, side, side, canvas=side)
    return len(prepared.labels)

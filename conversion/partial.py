"""A result on its way: a folder `DST.converting` that becomes DST when everything is in it.

    DST.converting/journal.jsonl   first line: what is being converted; then what is on disk already

Until then it lacks its config.json, so nothing loads it. The same conversion run again goes on
behind the last entry of the journal; any other starts clean. A folder of that name without such a
journal is somebody else's, and stays.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mg_jax import disk
from mg_jax.disk import disk_errors
from mg_jax.errors import UserError

SUFFIX = ".converting"
JOURNAL = "journal.jsonl"
MARK = "mg_jax conversion "  # begins a journal; behind it stands what is converted, as a hash
VERSION = 1  # of what is written; another one starts clean
SMALL = 1 << 20  # bytes; larger files were synced when they were written
LONGEST = 255  # bytes of the name of a file
SLACK = 1 << 24  # bytes of disk beside the tensors: headers, folders, indexes


class Partial:
    """The unfinished folder of `dst`. `done` names what an earlier run left whole in it.

    `state` says in words whether this run continues or starts clean.
    """

    def __init__(self, dst: Path, about: Mapping[str, Any], items: Collection[str]):
        """`about`: what is converted, and how; `items`: names of the entries that make it whole.

        Raises UserError when another process is writing to it, when it is not ours, or when it
        cannot be made.
        """
        self.dst = dst.absolute()
        self.folder = self.dst.with_name(self.dst.name + SUFFIX)
        text = json.dumps({"version": VERSION, **about}, sort_keys=True)
        self._key = MARK + hashlib.sha256(text.encode()).hexdigest()
        self.done: set[str] = set()
        self.state = ""
        with disk_errors(self.folder):
            there = self.folder.is_dir() and any(self.folder.iterdir())
            if there:
                self._check_ours()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.folder / JOURNAL, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"{self.folder}: another conversion is writing there") from None
        if there:
            self._resume(items)
        if not self.done:
            self._clean()

    def _check_ours(self) -> None:
        journal = self.folder / JOURNAL
        # empty: whoever made it was stopped before anything else was written
        begun = journal.read_bytes()[: len(MARK)] if journal.is_file() else b"?"
        if begun != MARK.encode() and (begun or not self._bare):
            raise UserError(
                f"{self.folder}: is there and was not left by a conversion; move it away or name "
                "another folder to write"
            )

    def _resume(self, items: Collection[str]) -> None:
        content = (self.folder / JOURNAL).read_bytes()
        content = content[: content.rfind(b"\n") + 1]  # a killed run may have torn the last line
        key, *names = content.splitlines() or [b""]
        if key == self._key.encode():
            with contextlib.suppress(ValueError, RecursionError):
                found = [json.loads(name) for name in names]
                if all(isinstance(name, str) and name in items for name in found):
                    self._file.truncate(len(content))
                    self.done = set(found)
                    self.state = f"continuing: {len(self.done)} of {len(items)} parts are there"
        if not self.done and not self._bare:
            self.state = f"starting clean: what {self.folder.name} held is of no use"

    @property
    def _bare(self) -> bool:
        """Whether nothing has been written but the journal."""
        return all(entry.name == JOURNAL for entry in self.folder.iterdir())

    def _clean(self) -> None:
        for entry in self.folder.iterdir():
            if entry.name != JOURNAL:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self._file.truncate(0)
        self._write(self._key)

    def note(self, name: str) -> None:
        """`name` is whole on disk; a run that continues will not make it again."""
        self._write(json.dumps(name))
        self.done.add(name)

    def _write(self, line: str) -> None:
        with disk_errors(self.folder):
            self._file.write(line + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self, overwrite: bool) -> Path:
        """Give the folder its name; returns it. Raises UserError as `check_target`."""
        check_target(self.dst, overwrite)
        with disk_errors(self.dst):
            for entry in self.folder.rglob("*"):
                if entry.is_dir() or entry.stat().st_size < SMALL:
                    sync(entry)
            sync(self.folder)
            disk.replace(self.folder, self.dst)
            # not before: a folder that could not be renamed is still known as ours
            (self.dst / JOURNAL).unlink()
            sync(self.dst.parent)
        self.close()
        return self.dst

    def close(self) -> None:
        """Give up the lock; the folder stays for the next run unless it is empty."""
        if self.folder.exists() and self._bare:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._file.close()

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Inside, a full disk is a UserError that says how to go on; the lock ends with it."""

        def mend() -> str:
            again = "free some space and run the same command again"
            if self._bare:
                return again
            return f"{self.folder.name} keeps what is written: {again} to continue"

        try:
            with disk_errors(self.dst, mend):
                yield
        finally:
            self.close()


def check_target(dst: Path, overwrite: bool, sources: Iterable[Path] = ()) -> None:
    """Raises UserError when `dst` is there and is not to be replaced, or cannot be a folder.

    `sources`: files and folders that are read, which `dst` must neither be nor hold.
    """
    check_names(dst)
    if not dst.exists():
        return
    for source in sources:
        if real(dst) in (real(source), *real(source).parents):
            raise UserError(f"{dst}: holds the source {source}; name another folder")
    if not dst.is_dir():
        raise UserError(f"{dst}: is a file; name a folder to write")
    if any(dst.iterdir()) and not overwrite:
        raise UserError(f"{dst}: is there already; name another folder or pass --overwrite")


def check_names(path: Path) -> None:
    """Raises UserError for a path that no file can have."""
    if any(len(os.fsencode(part)) > LONGEST for part in path.parts):
        raise UserError(
            f"{str(path)[:60]}...: is no path: a name has more than {LONGEST} bytes; shorten it"
        )


def real(path: Path) -> Path:
    """The absolute path without links."""
    return Path(os.path.realpath(path))  # Path.resolve raises for links in a circle


def need_space(dst: Path, count: int) -> None:
    """Raises UserError when the disk of `dst` has less than `count` bytes free."""
    with disk_errors(dst):
        disk.need_space(dst.absolute(), count + SLACK)


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

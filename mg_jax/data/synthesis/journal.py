"""What a run has been told and has made, on the disk at once: what makes it resumable.

A line of settings, then one for every answer that the endpoint gave (they cost money), and one for
every picture that is finished. Nothing is asked twice that stands here, and the output is made of
this file alone, so that nothing is lost and nothing stands there twice.
"""

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mg_jax.disk import disk_errors
from mg_jax.errors import UserError

Settings = Mapping[str, Any]


class Journal:
    """The file; safe to use from several threads, and held by one run at a time.

    settings: what the finished pictures depend on. overwrite: begin anew. redo: keep the answers,
    and finish all pictures anew. A torn last line is dropped.
    Raises UserError where the settings are others, another run writes, or it is no journal.
    """

    def __init__(
        self, path: Path, settings: Settings, *, overwrite: bool = False, redo: bool = False
    ):
        self.path = path
        self._lock = threading.Lock()
        self._answers: dict[str, int] = {}  # where the line begins, by what was asked
        self._done: dict[str, int] = {}  # by the key of the picture
        self._settings = json.loads(json.dumps(settings))
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = path.open("a+b")
        try:
            self._hold()
            if overwrite:
                self._file.truncate(0)
            self._read()
            if redo and self._end:
                self._drop_finished()
            elif not self._end:
                self._append({"settings": self._settings})
        except BaseException:
            self._file.close()
            raise

    def _hold(self) -> None:
        """Take the file for this process."""
        with contextlib.suppress(ImportError):  # not on Windows
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{self.path}: another run is writing it: wait for it") from None

    def _read(self) -> None:
        """Take what earlier runs left."""
        self._file.seek(0)
        self._end, before = 0, None
        for line in self._file:
            if not line.endswith(b"\n"):
                break  # torn
            try:
                row = json.loads(line)
                if "settings" in row:
                    before = row["settings"]
                elif "asked" in row:
                    self._answers[row["asked"]] = self._end
                else:
                    self._done[row["item"]] = self._end
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{self.path}: is no journal of launch.synthesize: remove it, or --overwrite"
                ) from None
            self._end += len(line)
        self._file.truncate(self._end)
        if before is None and self._end:
            raise UserError(f"{self.path}: has no settings: remove it, or --overwrite")
        self._other = [k for k in self._settings if before and before.get(k) != self._settings[k]]

    def _drop_finished(self) -> None:
        """Rewrite the file with the answers alone, under the new settings."""
        kept = [line for line in self._lines(self._answers.values())]
        part = self.path.with_name(self.path.name + ".part")
        with disk_errors(part), part.open("wb") as file:
            file.write(_line({"settings": self._settings}))
            file.writelines(kept)
        part.replace(self.path)
        self._file.close()
        self._file = self.path.open("a+b")
        self._hold()
        self._answers, self._done, self._other = {}, {}, []
        self._read()

    def check(self) -> None:
        """Raises UserError where earlier runs had other settings."""
        if self._other:
            self.close()
            raise UserError(
                f"{self.path}: was begun with another {', '.join(self._other)}: give the same "
                "options; --redo uses its answers under the new ones, --overwrite begins anew"
            )

    def __contains__(self, item: str) -> bool:
        return item in self._done

    def __len__(self) -> int:
        return len(self._done)

    def answer(self, asked: str) -> tuple[str, str] | None:
        """(text, why it ended) of what was asked before."""
        with self._lock:
            if asked not in self._answers:
                return None
            row = self._row(self._answers[asked])
        return row["text"], row["finish"]

    def note_answer(self, asked: str, item: str, step: str, text: str, finish: str) -> None:
        """An answer of the endpoint. asked: a digest of all that it depends on."""
        row = {"asked": asked, "item": item, "step": step, "text": text, "finish": finish}
        with self._lock:
            self._answers[asked] = self._append(row)

    def note_done(self, item: str, outcome: Mapping[str, Any]) -> None:
        """A finished picture, once."""
        with self._lock:
            if item not in self._done:
                self._done[item] = self._append({"item": item, "outcome": outcome})

    def outcome(self, item: str) -> dict[str, Any]:
        """What `note_done` was given."""
        with self._lock:
            found: dict[str, Any] = self._row(self._done[item])["outcome"]
        return found

    def _append(self, row: Mapping[str, Any]) -> int:
        start, line = self._end, _line(row)
        with disk_errors(self.path):
            self._file.write(line)
            self._file.flush()
        self._end += len(line)
        return start

    def _row(self, start: int) -> Any:
        self._file.seek(start)  # writing goes to the end all the same: the file is open to append
        return json.loads(self._file.readline())

    def _lines(self, starts: Any) -> Iterator[bytes]:
        for start in sorted(starts):
            self._file.seek(start)
            yield self._file.readline()

    def close(self) -> None:
        """Leave the file to the next run, with all of it on the disk."""
        if not self._file.closed:
            with disk_errors(self.path):
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> "Journal":
        self.check()
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"

"""The rows of large JSON files, read one at a time.

Files of conversations reach gigabytes. As Python objects they would need five times that, so only
the place of each row in the file is kept.
"""

import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mg_jax.errors import BadRecord, UserError

_CHUNK = 1 << 22
_SPACE = re.compile(r"[ \t\r\n]*")
_BOM = b"\xef\xbb\xbf"
_DECODER = json.JSONDecoder()
_AFTER = tuple(",:]} \t\r\n")  # what may follow a value


class JsonRows:
    """The objects of a jsonl file, or of a JSON file that is one list, or with named=True of one
    that is an object of named rows.

    `scan` reads the file once from its start to its end; the rows that `keep` is called for are
    kept, as their places in the file, and `rows[i]` reads them again.
    """

    def __init__(self, path: Path, named: bool = False):
        self.path, self._named = path, named
        self._spans = array("q")
        self._last = (0, 0)

    def scan(self) -> Iterator[tuple[str, Any, Any]]:
        """("file:line" or 'file: [3]' or 'file: ["name"]', line, index or name, row).

        A line of jsonl, or a text in the encoding of none, comes as BadRecord instead of a row.
        Raises UserError for a file that is neither of what the class reads.
        """
        with self.path.open("rb") as file:
            first = file.read(4096).removeprefix(_BOM).lstrip()[:1]
            file.seek(0)
            if self._named or first == b"[":
                yield from self._scan_json(file)
            else:
                yield from self._scan_lines(file)

    def keep(self) -> None:
        """Keep the row that `scan` gave last."""
        self._spans.extend(self._last)

    def __len__(self) -> int:
        return len(self._spans) // 2

    def __getitem__(self, i: int) -> Any:
        if not 0 <= i < len(self):
            raise IndexError(i)
        start, end = self._spans[2 * i : 2 * i + 2]
        with self.path.open("rb") as file:
            file.seek(start)
            return json.loads(file.read(end - start))

    def _scan_lines(self, file: BinaryIO) -> Iterator[tuple[str, Any, Any]]:
        end = 0
        for n, line in enumerate(file, 1):
            start, end = end, end + len(line)
            if n == 1 and line.startswith(_BOM):
                start, line = start + len(_BOM), line[len(_BOM) :]
            if line.strip():
                self._last = (start, end)
                yield f"{self.path}:{n}", n, _loads(line)

    def _scan_json(self, file: BinaryIO) -> Iterator[tuple[str, Any, Any]]:
        window = _Window(file, self.path)
        opening, closing = ("{", "}") if self._named else ("[", "]")
        if window.next() != opening:
            kind = "an object of named rows" if self._named else "a list"
            raise UserError(f"{self.path}: expected {kind}")
        window.skip()
        n = 0
        while window.next() != closing:
            if n:
                window.take(",")
            key: Any = n
            if self._named:
                key = window.value()[2]
                if not isinstance(key, str):
                    raise UserError(f"{self.path}: no valid JSON: {key!r} is no name of a row")
                window.take(":")
            start, end, row = window.value()
            self._last = (start, end)
            yield f"{self.path}: [{json.dumps(key)}]", key, row
            n += 1


def sections(path: Path) -> Iterator[tuple[str, "Elements | None"]]:
    """(key, rows) of a JSON file that is one object, in the order of the file.

    rows gives (index, row) of a value that is a list, and is None for any other value; rows that
    are not asked for are passed over. Raises UserError for a file that is no object, or malformed.
    """
    with path.open("rb") as file:
        window = _Window(file, path)
        if window.next() != "{":
            raise UserError(f"{path}: expected an object with lists")
        window.skip()
        first = True
        while window.next() != "}":
            if not first:
                window.take(",")
            first = False
            key = window.value()[2]
            window.take(":")
            if window.next() != "[":
                window.value()
                yield key, None
                continue
            rows = Elements(window)
            yield key, rows
            for _ in rows:
                pass


def rows_of(path: Path, key: str, what: str) -> Iterator[tuple[int, Any]]:
    """(index, row) of the list under a key of a JSON file that is one object.

    Raises UserError naming the file where there is no such list.
    """
    found = False
    for section, rows in sections(path):
        if section == key and rows is not None:
            found = True
            yield from rows
    if not found:
        raise UserError(f"{path}: not {what}: it has no list {key!r}")


class Elements:
    """Iterates over (index, row) of a list, each read when it is asked for.

    span: where the row that was given last stands in the file, its first byte and the one after.
    """

    def __init__(self, window: "_Window"):
        self._window, self._n, self._ended = window, 0, False
        self.span = (0, 0)
        window.skip()

    def __iter__(self) -> "Elements":
        return self

    def __next__(self) -> tuple[int, Any]:
        if self._ended:
            raise StopIteration
        if self._window.next() == "]":
            self._window.skip()
            self._ended = True
            raise StopIteration
        if self._n:
            self._window.take(",")
        start, end, row = self._window.value()
        self.span = start, end
        self._n += 1
        return self._n - 1, row


class _Window:
    """The part of a file that is being parsed, as Latin-1 text: so a place in the text is a place
    in the file, whatever the encoding of the strings (which are decoded row by row)."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path = file, path
        self.base = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
        file.seek(self.base)
        self.text, self.at, self.ended = "", 0, False

    def more(self) -> bool:
        """Drop what was parsed and read on; False at the end of the file."""
        rest = self.text[self.at :]
        data = self.file.read(max(_CHUNK, len(rest)))
        self.base += self.at
        self.text, self.at, self.ended = rest + data.decode("latin-1"), 0, not data
        return bool(data)

    def next(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def skip(self) -> None:
        self.at += 1

    def take(self, char: str) -> None:
        found = self.next()
        if found != char:
            what = f"found {found!r}" if found else "the file ends"
            raise UserError(
                f"{self.path}: no valid JSON: expected {char!r} at byte "
                f"{self.base + self.at}, {what}"
            )
        self.skip()

    def value(self) -> tuple[int, int, Any]:
        """(first byte, byte after the last, value) of the next value of any kind."""
        self.next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
                if self.ended or self.text[end : end + 1] in _AFTER:  # else a number may go on
                    break
            except (ValueError, RecursionError) as e:
                if self.ended:
                    place = self.base + getattr(e, "pos", self.at)
                    raise UserError(
                        f"{self.path}: no valid JSON: {getattr(e, 'msg', e)} at byte {place}"
                    ) from None
            self.more()
        raw = self.text[self.at : end]
        if not raw.isascii():
            value = _loads(raw.encode("latin-1"))
        span = self.base + self.at, self.base + end
        self.at = end
        return *span, value


def _loads(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as e:
        return BadRecord(f"no valid JSON: {e}")

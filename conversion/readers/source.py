"""What every reader is: names, shapes and tensors that stay in their mapped files until read."""

import abc
import math
import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from conversion.engine import TensorInfo
from mg_jax.errors import UserError, shown

LARGEST_TOKEN = 1 << 28  # bytes; no honest pickle or header holds a longer single value
MOST_AXES = 64  # of an array of NumPy's


def fits(shape: tuple[int, ...], itemsize: int) -> bool:
    """Whether there can be an array of that shape, empty or not."""
    return len(shape) <= MOST_AXES and itemsize * math.prod(n or 1 for n in shape) < 1 << 63


class Source(abc.ABC):
    """A checkpoint.

    `manifest` names every tensor in file order, `files` are those that hold tensors, `notes` say
    what was unwrapped, renamed or left out on the way, `where` is the path for messages.
    """

    where: str
    manifest: dict[str, TensorInfo]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    def read(self, name: str) -> np.ndarray:
        """One tensor, read-only: a view of the mapped file wherever its container allows.

        No other tensor is touched. Raises UserError when there is no tensor of that name.
        """
        if name not in self.manifest:
            raise UserError(f"{self.where}: no tensor {name!r}")
        tensor = self._read(name)
        tensor.flags.writeable = False
        return tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; a storage that several tensors share counts for each."""
        return sum(
            math.prod(info.shape) * np.dtype(info.dtype).itemsize for info in self.manifest.values()
        )

    @property
    @abc.abstractmethod
    def copied(self) -> int:
        """Bytes of memory that reading a tensor takes at most; 0 where all are views of files."""

    @abc.abstractmethod
    def _read(self, name: str) -> np.ndarray: ...


class FileMap:
    """A file mapped into memory, read-only; its pages are loaded when they are used.

    Raises UserError when the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                # an empty file cannot be mapped
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
        except FileNotFoundError:
            raise UserError(f"{self.path}: no such file") from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from None
        self._mapped = mapped
        self._bytes = np.frombuffer(mapped, np.uint8)

    def view(self, begin: int, end: int) -> np.ndarray:
        """Bytes `begin` to `end` as uint8, not copied. Raises UserError past the file's end."""
        if not 0 <= begin <= end <= self.size:
            raise UserError(f"{self.path}: cut short ({self.size} bytes, {end} needed)")
        return self._bytes[begin:end]

    def copy(self, begin: int, end: int) -> bytes:
        """The same, copied; what lies past the end of the file is left out."""
        return self._mapped[begin:end]

    def find(self, mark: bytes, begin: int, end: int) -> int:
        """Where `mark` first stands between two positions, -1 if nowhere."""
        return self._mapped.find(mark, begin, end)


class Stream:
    """Part of a mapped file as the reader's end of a file object, for pickles."""

    def __init__(self, file: FileMap, begin: int = 0, end: int | None = None):
        self._file, self._at = file, begin
        self._end = file.size if end is None else min(end, file.size)

    def tell(self) -> int:
        """The position in the file."""
        return self._at

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer at the end. Raises ValueError for absurd sizes, unread."""
        if size > LARGEST_TOKEN:
            raise ValueError(f"a value of {size} bytes")
        begin, self._at = self._at, min(self._at + size, self._end)
        return self._file.copy(begin, self._at)

    def readline(self) -> bytes:
        """Bytes up to and with the next newline."""
        last = min(self._end, self._at + LARGEST_TOKEN)
        newline = self._file.find(b"\n", self._at, last)
        return self.read((last if newline < 0 else newline + 1) - self._at)


class Joined(Source):
    """Several sources as one, the names of each under a prefix.

    Raises UserError when two of them hold one name.
    """

    def __init__(self, where: str, parts: Iterable[tuple[str, Source]], notes: Iterable[str] = ()):
        self.where, self.manifest = where, {}
        self._parts: list[Source] = []
        self._held: dict[str, tuple[Source, str]] = {}
        files: dict[Path, None] = {}
        gathered: list[str] = list(notes)
        for prefix, part in parts:
            for name, info in part.manifest.items():
                new = prefix + name
                if new in self._held:
                    both = f"{self._held[new][0].where} and {part.where}"
                    raise UserError(f"{where}: {shown(new)} stands in both {both}")
                self._held[new] = (part, name)
                self.manifest[new] = info
            self._parts.append(part)
            files |= dict.fromkeys(part.files)
            gathered += part.notes
        self.files, self.notes = tuple(files), tuple(dict.fromkeys(gathered))

    @property
    def copied(self) -> int:
        return max(part.copied for part in self._parts)

    def _read(self, name: str) -> np.ndarray:
        part, inner = self._held[name]
        return part.read(inner)


class Renamed(Source):
    """A source under other names: `names` maps each new name to the old one."""

    def __init__(self, source: Source, names: Mapping[str, str], note: str):
        self.where, self.files = source.where, source.files
        self.notes = (*source.notes, note)
        self.manifest = {new: source.manifest[old] for new, old in names.items()}
        self._source, self._names = source, names

    @property
    def copied(self) -> int:
        return self._source.copied

    def _read(self, name: str) -> np.ndarray:
        return self._source.read(self._names[name])

"""Files of tensors written from front to back: safetensors headers, and bytes past the cache."""

import errno
import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conversion.engine import TensorInfo
from conversion.readers import DTYPES

BUFFER = 1 << 24  # bytes collected before they are written
BLOCK = 4096  # sizes and addresses of direct writes are multiples of it
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


class Output:
    """A file written in order; whole and on disk when the block ends without an error.

    Bytes go past the kernel's cache where the file system allows it (O_DIRECT): they would only
    push out the pages of the source, and copying them there takes most of the time of a write.
    """

    def __init__(self, path: Path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            self._file = os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o644)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._file = os.open(path, flags, 0o644)  # tmpfs and others have no direct writes
        self._buffer = mmap.mmap(-1, BUFFER)  # anonymous pages: aligned
        self._filled = self._size = 0

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, kind, value, traceback) -> None:
        try:
            if kind is None:
                self._flush()
                os.ftruncate(self._file, self._size)
                os.fsync(self._file)
        finally:
            os.close(self._file)

    def write(self, data: bytes | np.ndarray) -> None:
        """Append bytes, or the numbers of an array in row-major order."""
        if isinstance(data, np.ndarray):
            data = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        view = memoryview(data)
        self._size += len(view)
        while len(view):
            count = min(len(view), BUFFER - self._filled)
            self._buffer[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]
            if self._filled == BUFFER:
                self._flush()

    def _flush(self) -> None:
        rest = memoryview(self._buffer)[: math.ceil(self._filled / BLOCK) * BLOCK]
        while len(rest):
            rest = rest[os.write(self._file, rest) :]
        self._filled = 0


def header(infos: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """The header of a safetensors file whose tensors follow in this order."""
    fields: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, info in infos.items():
        dtype = np.dtype(info.dtype)
        end = at + dtype.itemsize * math.prod(info.shape)
        fields[name] = {
            "dtype": NAMES[dtype], "shape": list(info.shape), "data_offsets": [at, end],
        }  # fmt: skip
        at = end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text

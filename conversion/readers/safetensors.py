"""safetensors files, read in place, and written."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from conversion.engine import TensorInfo
from conversion.readers.source import FileMap, Source, fits
from mg_jax.errors import UserError, shown

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
    "C64": np.complex64,
}  # fmt: skip
LARGEST_HEADER = 100_000_000  # the reference library's own limit
GIT_LFS = b"version https://git-lfs"


class SafeTensors(Source):
    """One .safetensors file, mapped into memory; a tensor's pages are read when it is used.

    Raises UserError when the file is missing, cut short or not in the format.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.where, self.files = str(self.path), (self.path,)
        self._file = FileMap(path)
        refuse_pointer(self._file)
        length = int.from_bytes(self._file.copy(0, 8), "little")
        if self._file.size < 8 or length > self._file.size - 8:
            raise UserError(f"{self.path}: cut short or not a safetensors file")
        self._start = 8 + length
        self._spans: dict[str, tuple[int, int]] = {}
        self.manifest = {}
        for name, entry in self._header(length).items():
            self._add(name, shown(name), entry)
        self._order()

    def _header(self, length: int) -> dict[str, Any]:
        unreadable = f"{self.path}: not a safetensors file (unreadable header)"
        if length > LARGEST_HEADER:
            raise UserError(unreadable)
        try:
            text = self._file.copy(8, 8 + length).decode()
            header = json.loads(text, object_pairs_hook=unique_names(self.path))
        except UserError:
            raise
        except (ValueError, RecursionError):  # no text, no JSON, a number of 5,000 digits
            raise UserError(unreadable) from None
        if not isinstance(header, dict):
            raise UserError(unreadable)
        header.pop("__metadata__", None)
        return header

    def _add(self, name: str, label: str, entry: Any) -> None:
        try:
            shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
            kind = entry["dtype"]
            numbers = (*shape, begin, end)
            whole = isinstance(kind, str) and all(type(n) is int and n >= 0 for n in numbers)
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise UserError(f"{self.path}: {label}: its header entry is broken")
        if kind not in DTYPES:
            raise UserError(f"{self.path}: {label}: unknown dtype {kind!r}")
        info = TensorInfo(shape, np.dtype(DTYPES[kind]))
        size = np.dtype(info.dtype).itemsize
        if end - begin != math.prod(shape) * size or not fits(shape, size):
            raise UserError(f"{self.path}: {label}: {end - begin} bytes do not fill its shape")
        if self._start + end > self._file.size:
            raise UserError(f"{self.path}: cut short ({label} lies past the end of the file)")
        self.manifest[name] = info
        self._spans[name] = (self._start + begin, self._start + end)

    def _order(self) -> None:
        """Put the manifest in file order; tensors lie end to end and fill the file."""
        self._spans = dict(sorted(self._spans.items(), key=lambda item: item[1]))
        self.manifest = {name: self.manifest[name] for name in self._spans}
        at = self._start
        for name, (begin, end) in self._spans.items():
            if begin != at:
                what = "overlaps another tensor" if begin < at else "follows a hole"
                raise UserError(f"{self.path}: {shown(name)} {what}; the file is damaged")
            at = end
        if at != self._file.size:
            raise UserError(f"{self.path}: {self._file.size - at} bytes belong to no tensor")

    @property
    def copied(self) -> int:
        unaligned = (
            end - begin
            for name, (begin, end) in self._spans.items()
            if begin % np.dtype(self.manifest[name].dtype).alignment
        )
        return max(unaligned, default=0)

    def _read(self, name: str) -> np.ndarray:
        begin, end = self._spans[name]
        info = self.manifest[name]
        dtype: np.dtype = np.dtype(info.dtype)
        raw = self._file.view(begin, end)
        if begin % dtype.alignment:
            raw = raw.copy()  # files of other writers may not align their data
        return raw.view(dtype).reshape(info.shape)


def refuse_pointer(file: FileMap) -> None:
    """Raise UserError for the little text file that git leaves in place of a large one."""
    if file.copy(0, len(GIT_LFS)) == GIT_LFS:
        raise UserError(f"{file.path}: a Git LFS pointer, not the file itself; run `git lfs pull`")


def unique_names(path: Path) -> Any:
    """A hook for json.loads: objects as dicts, UserError where a name stands twice."""

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise UserError(f"{path}: {name!r} stands twice in it")
            found[name] = value
        return found

    return to_dict


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]]
) -> None:
    """Write tensors under `path`; the file appears whole or not at all."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        save_file(dict(tensors), part, metadata={"format": "pt"})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

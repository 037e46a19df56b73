"""Checkpoint files as names, shapes and lazily read tensors: safetensors, single or sharded."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from conversion.engine import TensorInfo
from mg_jax.errors import UserError

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
MANIFESTS = Path(__file__).parent / "manifests"


class SafeTensors:
    """One .safetensors file, mapped into memory; a tensor's pages are read when it is used.

    Raises UserError when the file is missing, cut short or not in the format.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            size = self.path.stat().st_size
            with open(self.path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if size < 8 or length > size - 8:
                    raise UserError(f"{self.path}: cut short or not a safetensors file")
                header = json.loads(file.read(length))
        except FileNotFoundError:
            raise UserError(f"{self.path}: no such file") from None
        except (UnicodeDecodeError, json.JSONDecodeError):
            raise UserError(f"{self.path}: not a safetensors file (unreadable header)") from None
        header.pop("__metadata__", None)
        self._start, self._entries = 8 + length, header
        self.manifest: dict[str, TensorInfo] = {}
        for name, entry in header.items():
            if entry["dtype"] not in DTYPES:
                raise UserError(f"{self.path}: {name}: unknown dtype {entry['dtype']}")
            dtype: np.dtype = np.dtype(DTYPES[entry["dtype"]])
            info = TensorInfo(tuple(entry["shape"]), dtype)
            begin, end = entry["data_offsets"]
            if end - begin != math.prod(info.shape) * dtype.itemsize:
                raise UserError(f"{self.path}: {name}: {end - begin} bytes do not fill its shape")
            if self._start + end > size:
                raise UserError(f"{self.path}: cut short ({name} lies past the end of the file)")
            self.manifest[name] = info
        self._map = np.memmap(self.path, np.uint8, "r")

    def read(self, name: str) -> np.ndarray:
        """A tensor by name, as a read-only view of the file."""
        if name not in self.manifest:
            raise UserError(f"{self.path}: no tensor {name!r}")
        begin, end = (self._start + offset for offset in self._entries[name]["data_offsets"])
        dtype: np.dtype = np.dtype(DTYPES[self._entries[name]["dtype"]])
        raw = np.asarray(self._map[begin:end])
        if begin % dtype.itemsize:
            raw = raw.copy()  # files of other writers may not align their data
        return raw.view(dtype).reshape(self.manifest[name].shape)


class Sharded:
    """A folder with model.safetensors.index.json: the shards as one checkpoint."""

    def __init__(self, index: str | os.PathLike):
        index = Path(index)
        try:
            weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        except (json.JSONDecodeError, KeyError):
            raise UserError(f"{index}: not an index of shards (no weight_map)") from None
        self._shards = {file: SafeTensors(index.parent / file) for file in set(weight_map.values())}
        self._where = weight_map
        self.manifest = {}
        for name, file in weight_map.items():
            if name not in self._shards[file].manifest:
                raise UserError(f"{index}: {name} should be in {file}, which does not hold it")
            self.manifest[name] = self._shards[file].manifest[name]

    def read(self, name: str) -> np.ndarray:
        """A tensor by name, from whichever shard holds it."""
        if name not in self._where:
            raise UserError(f"checkpoint: no tensor {name!r}")
        return self._shards[self._where[name]].read(name)


def open_checkpoint(path: str | os.PathLike) -> SafeTensors | Sharded:
    """Open a .safetensors file, or a folder with model.safetensors or an index of shards."""
    path = Path(path)
    if path.is_dir():
        for name in ("model.safetensors", "model.safetensors.index.json"):
            if (path / name).exists():
                return open_checkpoint(path / name)
        raise UserError(f"{path}: holds no model.safetensors and no model.safetensors.index.json")
    return Sharded(path) if path.name.endswith(".index.json") else SafeTensors(path)


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


def read_manifest(path: str | os.PathLike) -> dict[str, TensorInfo]:
    """A stored manifest, `name <tab> [shape]` a line. A bare name is looked up in manifests/."""
    path = Path(path)
    if not path.suffix:
        path = MANIFESTS / f"{path}.tsv"
    rows = (line.split("\t") for line in path.read_text().splitlines() if line)
    return {name: TensorInfo(tuple(json.loads(shape))) for name, shape in rows}

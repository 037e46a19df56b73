"""A release back into a checkpoint of the original code."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from conversion import carried
from conversion.architectures import Architecture, find_config
from conversion.engine import check_leaves, expand
from conversion.export import (
    STEMS,
    WHOLE,
    Format,
    Tensor,
    shards,
    tensors,
    write_index,
    write_shard,
)
from conversion.hf_config import read_json
from conversion.job import (
    BASE,
    Advance,
    Job,
    Report,
    Say,
    compare,
    is_float,
    source_dtypes,
    wanted_dtype,
)
from conversion.partial import Partial, need_space
from conversion.readers import open_checkpoint
from conversion.stream import PIECE, Leaves
from mg_jax.errors import UserError


class ToTorch(Job):
    """See Job. `leaves` are the release's parameters."""

    to = "torch"

    def __init__(
        self,
        src: Path,
        dst: Path,
        entry: Architecture,
        cfg: Any,
        leaves: Leaves,
        *,
        given: str,
        dtype: str = "keep",
        format: Format = "safetensors",
        overwrite: bool = False,
    ):
        """Raises UserError when the original code cannot hold or would not compute this model."""
        self.src, self.dst, self.given, self.overwrite = src, dst, given, overwrite
        self.entry, self.cfg, self.leaves, self.format = entry, cfg, leaves, format
        if entry.write_config is None:
            raise UserError(
                f"{given}: a release of {entry.name} keeps a part of {entry.torch_class} alone, so "
                "there is no way back; convert the original folder instead"
            )
        if format not in STEMS:
            raise UserError(f"--format {format!r} is not known: choose {', '.join(STEMS)}")
        if format == "bin" and importlib.util.find_spec("torch") is None:
            raise UserError(
                "--format bin: is written by PyTorch, which is not installed: pip install "
                "'mg_jax[torch]', or leave the format at safetensors"
            )
        self.raw = entry.write_config(cfg)
        self.plan = expand(entry.table(cfg))
        have = {path: info.shape for path, info in leaves.manifest.items()}
        check_leaves(have, self.plan, str(leaves.path))
        self.dtypes = {path: np.dtype(leaves.manifest[path].dtype) for path in self.shapes}
        wanted = wanted_dtype(dtype)
        self.written = {
            path: wanted if wanted is not None and is_float(own) else own
            for path, own in self.dtypes.items()
        }
        self.files = tuple(_parameter_files(leaves.path))

    @property
    def tensors(self) -> list[Tensor]:
        return tensors(self.plan, self.written)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def memory(self) -> int:
        # one tensor is written while the next one is made
        largest = max(tensor.nbytes for tensor in self.tensors)
        return BASE + 2 * min(WHOLE, largest) + min(self.nbytes, 8 * PIECE)

    @property
    def shards(self) -> dict[str, list[Tensor]]:
        """File name -> the tensors in it."""
        return shards(self.tensors, self.format)

    @property
    def headline(self) -> list[str]:
        size = sum(info.dtype.itemsize * int(np.prod(info.shape)) for info in self._infos())
        return [
            f"release {self.given}: {len(self.shapes):,} arrays, {carried.gib(size)}, "
            f"{source_dtypes(self.dtypes.values())}",
            f"to {self.entry.name} ({self.entry.torch_class}) in {self.dst}: "
            f"{len(self.tensors):,} tensors, {carried.gib(self.nbytes)}, "
            f"{source_dtypes(self.written.values())}, in {', '.join(self.shards)}",
        ]

    def run(self, say: Say = lambda line: None, advance: Advance = lambda count: None) -> Path:
        files = self.shards
        partial = Partial(self.dst, self.about() | {"format": self.format}, len(files))
        with partial.guarded():
            if partial.state:
                say(partial.state)
            there = sum(t.nbytes for name in partial.done for t in files[name])
            advance(there)
            room = max(sum(t.nbytes for t in group) for group in files.values())
            need_space(self.dst, self.nbytes - there + (room if self.format == "bin" else 0))
            for name, group in files.items():
                if name not in partial.done:
                    write_shard(partial.folder / name, group, self.leaves.read, advance)
                    partial.note(name)
            carried.out_of_release(self.src, partial.folder)
            write_index(partial.folder, files, self.format)
            text = json.dumps(self.config(), indent=2, sort_keys=True)
            (partial.folder / "config.json").write_text(text + "\n", encoding="utf-8")
            return partial.finish(self.overwrite)

    def check(self, advance: Advance = lambda count: None) -> Report:
        found, written = self.tensors, open_checkpoint(self.dst)
        path = find_config(self.dst)
        wrong = [] if self.entry.read(read_json(path), str(path)) == self._read() else [path.name]
        infos = {tensor.name: tensor.info for tensor in found}
        for name in {**infos, **written.manifest}:
            if infos.get(name) != written.manifest.get(name):
                wrong.append(name)
        if not wrong:
            wrong += compare(found, written.read, self.leaves.read, advance)
        casts = {
            f"{self.dtypes[path].name} to {dtype.name}"
            for path, dtype in self.written.items()
            if dtype != self.dtypes[path]
        }
        size = sum(t.nbytes for t in found)
        return Report(len(found), size, tuple(wrong), ", ".join(sorted(casts)))

    def config(self) -> dict[str, Any]:
        """The config.json that the original code reads."""
        names = {dtype.name for dtype in self.written.values() if is_float(dtype)}
        return self.raw | ({"torch_dtype": names.pop()} if len(names) == 1 else {})

    def _read(self) -> Any:
        return self.entry.read(self.raw, "config.json")

    def _infos(self):
        return (self.leaves.manifest[path] for path in self.shapes)


def _parameter_files(path: Path) -> list[Path]:
    """The files that tell one set of parameters from another."""
    if path.is_file():
        return [path]
    return [
        file for name in ("_METADATA", "_CHECKPOINT_METADATA") if (file := path / name).exists()
    ]

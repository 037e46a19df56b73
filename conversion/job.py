"""One conversion: planned from names, shapes and configs alone, then run, then checked.

job = conversion.prepare("FOLDER", "RELEASE", dtype="bf16")
print(job.describe())
job.run()
print(job.check())
"""

import abc
import collections
import dataclasses
import importlib.metadata
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

import mg_jax
from conversion.architectures import Architecture
from conversion.carried import gib
from conversion.engine import Plan
from conversion.export import ReadLeaf, Tensor
from conversion.moves import Pool, bits_equal
from conversion.partial import free_bytes
from conversion.stream import Read
from mg_jax.errors import UserError

DTYPES = {"keep": None, "bf16": np.dtype(ml_dtypes.bfloat16), "f32": np.dtype(np.float32)}
DType = Literal["keep", "bf16", "f32"]
BASE = 1 << 29  # bytes that Python, JAX and TensorStore take by themselves
LISTED = 20  # differences shown by a report

Say = Callable[[str], None]
Advance = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Report:
    """What `check` found: tensors compared, those that differ, and how they were compared."""

    tensors: int
    nbytes: int
    different: tuple[str, ...]
    cast: str = ""
    dropped: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether everything is as it was."""
        return not self.different

    def __str__(self) -> str:
        how = f"after the cast {self.cast}" if self.cast else "bit for bit"
        same = self.tensors - len(self.different)
        lines = [f"check: {same:,} of {self.tensors:,} tensors ({gib(self.nbytes)}) equal {how}"]
        lines += [f"  differs: {name}" for name in self.different[:LISTED]]
        if len(self.different) > LISTED:
            lines.append(f"  ... and {len(self.different) - LISTED} more")
        lines += [f"  left out: {line}" for line in reasons(self.dropped)]
        return "\n".join(lines)


class Job(abc.ABC):
    """A planned conversion. No tensor has been read yet.

    `dtypes`: of each leaf in a release, before or after. `files`: those that are read.
    """

    to: str
    src: Path
    given: str
    dst: Path
    entry: Architecture
    cfg: Any
    plan: Plan
    dtypes: dict[str, np.dtype]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    overwrite: bool = False

    @abc.abstractmethod
    def run(self, say: Say = lambda line: None, advance: Advance = lambda count: None) -> Path:
        """Convert; returns the folder, which appears whole or not at all.

        `say` gets lines about what is going on, `advance` the bytes of each piece written. Raises
        UserError for an input that cannot be read or a full disk.
        """

    @abc.abstractmethod
    def check(self, advance: Advance = lambda count: None) -> Report:
        """Read the result anew and compare every tensor with its source."""

    @property
    @abc.abstractmethod
    def tensors(self) -> list[Tensor]:
        """Every tensor on the PyTorch side, in the dtype of the result."""

    @property
    @abc.abstractmethod
    def nbytes(self) -> int:
        """Bytes of numbers that are written."""

    @property
    @abc.abstractmethod
    def headline(self) -> list[str]:
        """What is converted into what."""

    def describe(self) -> str:
        """What maps where, sizes, and the memory and disk it takes; reads no tensor."""
        lines = [*self.headline, *(f"  note: {note}" for note in self.notes), ""]
        rows = [self._row(leaf) for leaf in self.plan.leaves]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  " + "  ".join(padded).rstrip())
        lines += [f"  copy: {line}" for line in self._copies()]
        lines += [f"  left out: {line}" for line in reasons(self.plan.dropped)]
        largest = max((t.nbytes for t in self.tensors), default=0)
        lines += [
            "",
            f"expected peak memory {gib(self.memory)} (largest tensor {gib(largest)}); "
            f"disk {gib(self.nbytes)}, of which {gib(free_bytes(self.dst))} are free",
        ]
        return "\n".join(lines)

    @property
    @abc.abstractmethod
    def memory(self) -> int:
        """Bytes of memory that the conversion takes at most: it does not grow with the model."""

    def _row(self, leaf) -> tuple[str, ...]:
        name = leaf.pattern
        for size in leaf.stack:
            name = re.sub(r"\{\w+\}", f"{{0..{size - 1}}}", name, count=1)
        count = f"{len(leaf.names)} x " if leaf.stack else ""
        ours = ", ".join(f"{part.path} {list(part.shape)}" for part in leaf.parts)
        dtype = self.dtypes[leaf.paths[0]]
        size = dtype.itemsize * sum(math.prod(part.shape) for part in leaf.parts)
        arrow = "->" if self.to == "jax" else "<-"
        return name, f"{count}{list(leaf.torch_shape)}", arrow, ours, dtype.name, gib(size)

    def _copies(self) -> Iterator[str]:
        groups: dict[tuple[str, str], int] = collections.Counter(
            (starred(copy), starred(source)) for copy, source in self.plan.tied.items()
        )
        for (copy, source), count in groups.items():
            yield f"{copy} = {source}" + (f" ({count})" if count > 1 else "")

    def about(self) -> dict[str, Any]:
        """What makes two runs the same conversion: sources, mapping and numbers' format."""
        files = [[str(f), (stat := f.stat()).st_size, stat.st_mtime_ns] for f in self.files]
        return {
            "to": self.to,
            "files": files,
            "architecture": self.entry.name,
            "model": repr(self.cfg),
            "leaves": {p: [list(s), self.dtypes[p].name] for p, s in self.shapes.items()},
            "tensors": [[t.name, t.dtype.name] for t in self.tensors],
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path -> shape of every leaf."""
        return self.plan.jax_shapes()


def compare(
    tensors: Iterable[Tensor], read: Read, leaves: ReadLeaf, advance: Advance
) -> tuple[str, ...]:
    """The tensors that differ between the PyTorch side and the leaves, which are moved back.

    Both are cast to the dtype of the result. Every row of every tensor is compared.
    """
    different, pool = [], Pool()
    for tensor in tensors:
        original, at = read(tensor.name), 0
        if original.shape != tensor.leaf.torch_shape:
            different.append(tensor.name)
            continue
        same = True
        for block in tensor.blocks(leaves, pool):
            rows = original[at : at + len(block)] if block.ndim else original
            at += len(block) if block.ndim else 0
            same = same and bits_equal(block, rows.astype(block.dtype, copy=False))
            advance(block.nbytes)
            pool.give_back(block)
        if not same:
            different.append(tensor.name)
    return tuple(different)


def is_float(dtype: Any) -> bool:
    """Whether a cast applies: bfloat16 and its kin are no floats to NumPy."""
    return np.dtype(dtype).kind == "f" or "float" in np.dtype(dtype).name


def reasons(dropped: Mapping[str, str]) -> Iterator[str]:
    """Dropped tensors by kind of name, with the reason and how many there are."""
    groups: dict[tuple[str, str], int] = collections.Counter(
        (starred(name), why) for name, why in dropped.items()
    )
    for (name, why), count in groups.items():
        yield f"{name}" + (f" ({count})" if count > 1 else "") + f": {why}"


def starred(name: str) -> str:
    """A tensor's name with `*` for its numbers."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def source_dtypes(dtypes: Iterable[Any]) -> str:
    """The dtypes of a checkpoint in words."""
    counted = collections.Counter(np.dtype(d).name for d in dtypes)
    return ", ".join(name for name, _ in counted.most_common())


def wanted_dtype(name: str) -> np.dtype | None:
    """The dtype of --dtype. Raises UserError for an unknown one."""
    if name not in DTYPES:
        raise UserError(f"--dtype {name!r} is not known: choose {', '.join(DTYPES)}")
    return DTYPES[name]


def versions() -> dict[str, str]:
    """Versions of what moves the numbers, for the record."""
    others = {p: importlib.metadata.version(p) for p in ("jax", "tensorstore")}
    return {"mg_jax": mg_jax.__version__, **others}

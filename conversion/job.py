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
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

import mg_jax
from conversion.carried import gib
from conversion.engine import Plan
from conversion.export import ReadLeaf, Tensor
from conversion.located import Opened, Release
from conversion.moves import Pool, bits_equal, is_float
from conversion.partial import Partial, need_space, real
from conversion.stream import Read
from mg_jax.disk import free_bytes
from mg_jax.errors import UserError, some

DTYPES = {"keep": None, "bf16": np.dtype(ml_dtypes.bfloat16), "f32": np.dtype(np.float32)}
DType = Literal["keep", "bf16", "f32"]
BASE = 1 << 29  # bytes that Python, JAX and TensorStore take by themselves
LISTED = 20  # differences shown by a report

Say = Callable[[str], None]
Advance = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Checked:
    """What `check` found: how many tensors there are, which of them differ or could not be
    compared, what `others` do not fit (the config, parts that belong nowhere), and how they were
    compared."""

    tensors: int
    nbytes: int
    different: tuple[str, ...]
    others: tuple[str, ...] = ()
    cast: str = ""
    dropped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything is as it was."""
        return not (self.different or self.others)

    def __str__(self) -> str:
        how = f"after the cast {self.cast}" if self.cast else "bit for bit"
        same = self.tensors - len(self.different)
        lines = [f"check: {same:,} of {self.tensors:,} tensors ({gib(self.nbytes)}) equal {how}"]
        lines += [f"  differs: {name}" for name in some((*self.others, *self.different), LISTED)]
        lines += [f"  left out: {line}" for line in reasons(self.dropped)]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


class Job(abc.ABC):
    """A planned conversion. No tensor has been read yet.

    `dtypes`: of each leaf in a release, before or after. `files`: those that are read. `inert`:
    fields of the source's config.json that change no number.
    """

    to: str
    plan: Plan
    dtypes: dict[str, np.dtype]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    inert: tuple[str, ...] = ()

    def __init__(self, found: Opened | Release, dst: Path, overwrite: bool):
        # a link stays: what it leads to is made, on that disk
        self.src, self.dst, self.overwrite = found.path, real(dst), overwrite
        self.given, self.entry, self.cfg = found.given, found.entry, found.cfg

    def run(
        self,
        say: Say = lambda line: None,
        advance: Advance = lambda count: None,
        there: Advance = lambda count: None,
    ) -> Path:
        """Convert; returns the folder, which appears whole or not at all.

        `say` gets lines about what is going on, `advance` the bytes of each piece written, `there`
        those that an earlier run wrote. Raises UserError for an input that cannot be read or a
        full disk.
        """
        partial = Partial(self.dst, self.about(), self.sizes)
        with partial.guarded():
            if partial.state:
                say(partial.state)
            done = sum(self.sizes[name] for name in partial.done)
            need_space(self.dst, self.disk - done)
            there(done)
            self._write(partial, advance)
            return partial.finish(self.overwrite)

    @abc.abstractmethod
    def _write(self, partial: Partial, advance: Advance) -> None:
        """Write what `partial` lacks, whatever opens the folder last."""

    @abc.abstractmethod
    def check(self, advance: Advance = lambda count: None) -> Checked:
        """Read the result anew and compare every tensor with its source."""

    @property
    @abc.abstractmethod
    def tensors(self) -> list[Tensor]:
        """Every tensor on the PyTorch side, in the dtype of the result."""

    @property
    @abc.abstractmethod
    def sizes(self) -> dict[str, int]:
        """Bytes of numbers of each part that an interrupted run need not make again."""

    @property
    def nbytes(self) -> int:
        """Bytes of numbers that are written."""
        return sum(self.sizes.values())

    @property
    def disk(self) -> int:
        """Bytes of disk that a run takes at most."""
        return self.nbytes

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
        lines += [f"  without effect: {line}" for line in by_section(self.inert)]
        largest = max((t.nbytes for t in self.tensors), default=0)
        lines += [
            "",
            f"expected peak memory {gib(self.memory)} (largest tensor {gib(largest)}); "
            f"disk {gib(self.disk)}, of which {gib(free_bytes(self.dst))} are free",
        ]
        return "\n".join(lines)

    @property
    @abc.abstractmethod
    def memory(self) -> int:
        """Bytes of memory that `run` takes at most."""

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


def differing(
    tensors: Iterable[Tensor], read: Read, leaves: ReadLeaf, advance: Advance
) -> Iterator[str]:
    """The tensors that differ between the PyTorch side and the leaves, which are moved back.

    Both are cast to the dtype of the result. Every row of every tensor is compared.
    """
    pool = Pool()
    for tensor in tensors:
        original, at = read(tensor.name), 0
        same = original.shape == tensor.leaf.torch_shape
        for block in tensor.blocks(leaves, pool) if same else ():
            rows = original[at : at + len(block)] if block.ndim else original
            at += len(block) if block.ndim else 0
            same = same and bits_equal(block, rows.astype(block.dtype, copy=False))
            advance(block.nbytes)
            pool.give_back(block)
        if not same:
            yield tensor.name


def check_dtypes(plan: Plan, dtypes: Mapping[str, np.dtype], held: Container[str], what: str):
    """Raises UserError naming a tensor whose dtype `what`, which knows those `held`, cannot hold.

    `dtypes`: of each leaf as written.
    """
    for leaf in plan.leaves:
        dtype = dtypes[leaf.paths[0]]
        if dtype.name not in held:
            mend = ": cast it with --dtype bf16 or f32" if is_float(dtype) else ""
            raise UserError(
                f"{plan.where}: {leaf.names[0]} is {dtype}, which {what} cannot hold{mend}"
            )


def by_section(fields: Iterable[str]) -> Iterator[str]:
    """Fields of a config.json, those of one section in a line."""
    groups: dict[str, list[str]] = {}
    for field in fields:
        section, _, name = field.rpartition(".")
        groups.setdefault(section, []).append(name)
    for section, names in groups.items():
        yield f"{section or 'config.json'}: {', '.join(names)}"


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

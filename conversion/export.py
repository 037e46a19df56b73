"""The PyTorch side: leaves of a release as tensors in shards, under the original names.

    model.safetensors                      one file up to SHARD bytes, else
    model-00001-of-00003.safetensors ...   shards and model.safetensors.index.json
    pytorch_model.bin ...                  the same as torch.save, for code that loads nothing else

A tensor is made from the leaves in blocks of rows, so that neither a leaf nor a large tensor is
ever in memory whole.
"""

import concurrent.futures
import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from conversion.engine import Plan, TensorInfo
from conversion.moves import Pool, move
from conversion.output import Output, header
from conversion.partial import sync
from conversion.patterns import Leaf
from conversion.readers.source import Source
from conversion.stream import Region
from mg_jax.errors import UserError

SHARD = 5 * 10**9  # bytes of a shard, as transformers writes them
WHOLE = 1 << 29  # bytes of a tensor up to which it is made whole
Format = Literal["safetensors", "bin"]
STEMS = {"safetensors": "model", "bin": "pytorch_model"}
ReadLeaf = Callable[[str, Region], Iterator[tuple[Region, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor to write: its name and dtype, and where it comes from."""

    name: str
    dtype: np.dtype
    leaf: Leaf
    at: tuple[int, ...]

    @property
    def info(self) -> TensorInfo:
        """Shape and dtype."""
        return TensorInfo(self.leaf.torch_shape, self.dtype)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.dtype.itemsize * math.prod(self.leaf.torch_shape)

    def blocks(self, read: ReadLeaf, pool: Pool) -> Iterator[np.ndarray]:
        """The tensor from the leaves, whole or in blocks of rows of about WHOLE bytes.

        `read(path, region)` gives a region of a leaf in pieces, as stream.Leaves does. A block is
        lent by `pool`: whoever uses it gives it back.
        """
        leaf, shape = self.leaf, self.leaf.torch_shape
        lead = tuple(slice(i, i + 1) for i in self.at)
        axis, size = leaf.rows
        count = min(size, math.ceil(self.nbytes / WHOLE)) or 1
        step = math.ceil(size / count) or 1  # even blocks
        for start in range(0, size if axis else 1, step):
            stop = min(start + step, size)
            some = (shape[0] // size * (stop - start), *shape[1:]) if axis else shape
            block = pool.lend(some, self.dtype)
            for part in leaf.parts:
                axes = {axis: stop - start} if axis else {}
                view = part.view(block, **axes)
                inner = tuple(
                    slice(start, stop) if token == (axis,) else slice(0, length)
                    for token, length in zip(part.tokens, part.shape[len(lead) :], strict=True)
                )
                for at, piece in read(part.path, (*lead, *inner)):
                    target = view[part.within(at[len(lead) :])]
                    move(target, piece.reshape(target.shape))
            yield block


@dataclasses.dataclass(frozen=True)
class Difference(Tensor):
    """A tensor less that of the same name in a base, in the dtype that is written; rows and columns
    that the base lacks stay whole (readers/delta.py has the rule)."""

    base: Source

    def blocks(self, read: ReadLeaf, pool: Pool) -> Iterator[np.ndarray]:
        """As of Tensor. Raises UserError when a difference is too large for the dtype."""
        other, at = self.base.read(self.name), 0
        for block in super().blocks(read, pool):
            rows = other[at : at + len(block)].astype(self.dtype, copy=False)
            at += len(block)
            inside = block[tuple(map(slice, rows.shape))]
            with np.errstate(over="ignore", invalid="ignore"):
                inside -= rows
            if not np.isfinite(inside).all():
                raise UserError(
                    f"{self.name} less that of {self.base.where} overflows {self.dtype}: is this "
                    "the right base?"
                )
            yield block


def tensors(plan: Plan, dtypes: Mapping[str, Any]) -> list[Tensor]:
    """Every tensor an export writes, copies included, in the order of the table.

    `dtypes`: of each leaf path as written.
    """
    copies: dict[str, list[str]] = {}
    for copy, source in plan.tied.items():
        copies.setdefault(source, []).append(copy)
    out = []
    for leaf in plan.leaves:
        dtype = np.dtype(dtypes[leaf.paths[0]])
        for at, name in leaf.indexed():
            out += [Tensor(n, dtype, leaf, at) for n in (name, *copies.get(name, ()))]
    return out


def shards(listed: Iterable[Tensor], format: Format) -> dict[str, list[Tensor]]:
    """File name -> its tensors, none above SHARD bytes unless a tensor alone is."""
    groups: list[list[Tensor]] = [[]]
    size = 0
    for tensor in listed:
        if groups[-1] and size + tensor.nbytes > SHARD:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    stem, end = STEMS[format], format
    if len(groups) == 1:
        return {f"{stem}.{end}": groups[0]}
    total = len(groups)
    return {f"{stem}-{i + 1:05}-of-{total:05}.{end}": group for i, group in enumerate(groups)}


def write_shard(
    path: Path,
    group: Iterable[Tensor],
    read: ReadLeaf,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Write one shard; the file has its name once it is whole and on disk."""
    # larger items first: every tensor then begins at a multiple of its own item
    ordered = sorted(group, key=lambda tensor: -tensor.dtype.itemsize)
    plain = path.with_suffix(".safetensors")
    part = plain.with_name(plain.name + ".part")
    pool = Pool()
    with Output(part) as file:
        file.write(header({tensor.name: tensor.info for tensor in ordered}, {"format": "pt"}))
        for block in ahead(block for tensor in ordered for block in tensor.blocks(read, pool)):
            file.write(block)
            advance(block.nbytes)
            pool.give_back(block)
    if path.suffix != ".safetensors":
        _pickle(part, path)
        part.unlink()
    else:
        part.rename(path)
    sync(path.parent)


def write_index(folder: Path, files: Mapping[str, list[Tensor]], format: Format) -> None:
    """The index of the shards, unless there is one file alone."""
    if len(files) < 2:
        return
    where = {tensor.name: name for name, group in files.items() for tensor in group}
    total = sum(tensor.nbytes for group in files.values() for tensor in group)
    content = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / f"{STEMS[format]}.{format}.index.json").write_text(json.dumps(content, indent=2))


def ahead(items: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same items, each made in another thread while the one before is used."""

    def following() -> np.ndarray | None:
        return next(items, None)

    with concurrent.futures.ThreadPoolExecutor(1) as worker:
        future = worker.submit(following)
        while (item := future.result()) is not None:
            future = worker.submit(following)
            yield item


def _pickle(source: Path, path: Path) -> None:
    """A safetensors file again as torch.save; its tensors stay in the mapped file."""
    import torch

    from conversion.readers import SafeTensors

    held = SafeTensors(source)
    state = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the file is read-only: so is what is done with it
        for name in held.manifest:
            array = held.read(name)
            # of the types that are not NumPy's own torch takes the bits
            bits = array if array.dtype.isbuiltin == 1 else array.view(f"i{array.itemsize}")
            kind = getattr(torch, array.dtype.name)
            state[name] = torch.from_numpy(bits).view(kind)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:  # of files that it opens itself torch does not tell a full disk
        torch.save(state, file)
    sync(part)
    part.rename(path)

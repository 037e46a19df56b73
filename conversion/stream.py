"""Parameters written and read piece by piece, so that memory does not grow with the model.

A release of 1 GiB or more keeps its parameters as zarr 3 arrays, one folder a leaf, which Orbax
restores onto any mesh (mg_jax.checkpoint.ParamFile). They are written here through TensorStore,
not by Orbax, which takes whole leaves only: the stacked gate of a 7B model is 5.4 GiB in float32.

    params/_METADATA, _CHECKPOINT_METADATA     what Orbax reads first
    params/lm/blocks/mlp/gate/kernel/zarr.json
    params/lm/blocks/mlp/gate/kernel/c/7/0/0   one file: a piece of at most PIECE bytes

Inside a file lie chunks that divide the shards of every preset of mg_jax.sharding on meshes of up
to WAYS devices an axis, so a device reads its own bytes and no others. They are not compressed:
zstd takes a fifth off bfloat16 weights and a tenth off float32 ones, but costs more time than
writing them, and makes each chunk a unit that must be decoded. They carry a CRC-32C.
"""

import collections
import dataclasses
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conversion.engine import Plan, read_tensor
from conversion.moves import Pool, move
from conversion.patterns import Leaf, Part
from mg_jax import sharding

PIECE = 1 << 24  # bytes of a file
HELD = 1 << 29  # bytes of arrays that wait to be written; no larger one is made
TOGETHER = 1 << 20  # bytes of a stacked leaf up to which its layers share a chunk
WAYS = {"data": 1, "fsdp": 64, "tensor": 8}  # largest mesh whose shards the chunks divide
Region = tuple[slice, ...]
Read = Callable[[str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Grid:
    """How a leaf is cut: `block` is the shape of what is made at once, `piece` of a file, `chunk`
    of what is read alone."""

    shape: tuple[int, ...]
    block: tuple[int, ...]
    piece: tuple[int, ...]
    chunk: tuple[int, ...]

    def blocks(self) -> Iterator[Region]:
        """The blocks in row-major order."""
        return cut(tuple(slice(0, size) for size in self.shape), self.block)


def ways(name: str | None) -> int:
    """How many ways a dimension of this logical name is cut at most, by any preset."""
    most = 1
    if name is None:
        return most
    for rules in sharding.RULES.values():
        axes = rules[name] or ()
        axes = (axes,) if isinstance(axes, str) else axes
        most = max(most, math.prod(WAYS[axis] for axis in axes))
    return most


def _most(shape: Sequence[int], names: Sequence[str | None]) -> list[int]:
    """How many ways each dimension is cut at most, with what comes from one that does not divide
    (`sharding.INSTEAD`)."""
    own = [ways(name) for name in names]
    most = list(own)
    for name, size, count in zip(names, shape, own, strict=True):
        if size % count:
            for i, other in enumerate(names):
                most[i] *= count if other in sharding.INSTEAD.get(name or "", ()) else 1
    return [math.gcd(size, count) for size, count in zip(shape, most, strict=True)]


def grid(
    shape: Sequence[int],
    itemsize: int,
    names: Sequence[str | None],
    stack: int = 0,
    free: Sequence[bool] | None = None,
) -> Grid:
    """How a leaf with dimensions of these logical `names` is cut.

    `stack`: leading axes that are read one by one. `free`: axes that pieces may be cut along
    (default: all).
    """
    most = _most(shape, names)
    units = [size // n if n > 1 else 1 for size, n in zip(shape, most, strict=True)]
    piece = list(shape)
    for axis, size in enumerate(shape):
        whole = itemsize * math.prod(piece)
        if whole <= PIECE:
            break
        if free is None or free[axis]:
            count, each = size // units[axis], whole // size * units[axis]
            pieces = math.ceil(count / max(1, PIECE // each))
            piece[axis] = math.ceil(count / pieces) * units[axis]  # even ones
    chunk = [unit if n > 1 else size for unit, n, size in zip(units, most, piece, strict=True)]
    if itemsize * math.prod(shape) > TOGETHER:
        chunk[:stack] = [1] * stack
    # layer by layer, or file by file where a layer is too large
    block = [*piece[:stack], *shape[stack:]]
    if itemsize * math.prod(block) > HELD:
        block = piece
    return Grid(tuple(shape), tuple(block), tuple(piece), tuple(chunk))


def cut(region: Region, shape: Sequence[int]) -> Iterator[Region]:
    """The parts of a region that lie between multiples of `shape`, in row-major order."""
    cuts = []
    for s, size in zip(region, shape, strict=True):
        edges = [s.start, *range(s.start // size * size + size, s.stop, size), s.stop]
        cuts.append([slice(a, b) for a, b in itertools.pairwise(edges)])
    yield from itertools.product(*cuts)


@dataclasses.dataclass(frozen=True)
class _Write:
    """A block on its way to its files; `last`: the leaf that is whole with it."""

    files: dict[Path, Any]
    numbers: np.ndarray
    last: str | None

    @property
    def done(self) -> bool:
        return all(future.done() for future in self.files.values())


def uncache(path: Path) -> None:
    """Let the kernel take back the pages of a file that is on disk.

    Nobody reads it soon, and pages that are free again are much cheaper for the next file than
    fresh ones: twice the speed of writing, on a virtual machine.
    """
    if hasattr(os, "posix_fadvise"):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def assemble(
    leaf: Leaf, part: Part, region: Region, read: Read, dtype: Any, pool: Pool, where: str
) -> np.ndarray:
    """A region of a leaf from its source tensors, in `dtype` and lent by `pool`.

    Raises UserError naming `where` when a tensor is not of the shape its manifest stated.
    """
    lead, inner = region[: len(leaf.stack)], region[len(leaf.stack) :]
    out = pool.lend([s.stop - s.start for s in region], dtype)
    for at in itertools.product(*(range(s.start, s.stop) for s in lead)):
        name = leaf.names[int(np.ravel_multi_index(at, leaf.stack)) if at else 0]
        view = part.view(read_tensor(read, leaf, name, where))[part.within(inner)]
        here = (*(i - s.start for i, s in zip(at, lead, strict=True)), ...)
        move(out[here].reshape(view.shape), view)
    return out


def leaf_grid(leaf: Leaf, part: Part, dtype: Any, names: Sequence[str | None]) -> Grid:
    """The grid of a leaf: axes made of several names are never cut."""
    free = [True] * len(leaf.stack) + [len(token) < 2 for token in part.tokens]
    return grid(part.shape, np.dtype(dtype).itemsize, names, len(leaf.stack), free)


def row_regions(leaf: Leaf, part: Part, dtype: Any) -> Iterator[Region]:
    """Pieces of a leaf that follow one another in row-major order."""
    whole = [True] * len(leaf.stack) + [len(token) < 2 for token in part.tokens]
    free = [all(whole[: axis + 1]) for axis in range(len(whole))]
    names = [None] * len(part.shape)
    made = grid(part.shape, np.dtype(dtype).itemsize, names, 0, free)
    return cut(tuple(slice(0, size) for size in part.shape), made.piece)


def write_arrays(
    folder: Path,
    plan: Plan,
    read: Read,
    dtypes: Mapping[str, Any],
    names: Mapping[str, Sequence[str | None]],
    *,
    skip: frozenset[str] = frozenset(),
    done: Callable[[str], None] = lambda path: None,
    advance: Callable[[int], None] = lambda count: None,
    pool: Pool | None = None,
) -> None:
    """Write every leaf of `plan` but those of `skip` under `folder`, as zarr 3 arrays.

    `dtypes` and `names` (logical axes) are by leaf path. `done(path)` is called when a leaf is on
    disk, `advance(bytes)` at each piece. Raises what TensorStore raises; nothing is in flight then.
    """
    pool = pool or Pool()
    waiting: collections.deque[_Write] = collections.deque()

    def settle() -> None:
        written = waiting[0]
        for file, future in written.files.items():
            future.result()
            uncache(file)
        waiting.popleft()
        pool.give_back(written.numbers)
        advance(written.numbers.nbytes)
        if written.last is not None:
            done(written.last)

    try:
        for leaf in plan.leaves:
            for part in leaf.parts:
                if part.path in skip:
                    continue
                dtype = np.dtype(dtypes[part.path])
                made = leaf_grid(leaf, part, dtype, names[part.path])
                store = _create(folder / part.path, made, dtype)
                blocks = list(made.blocks())
                for block in blocks:
                    count = dtype.itemsize * math.prod(s.stop - s.start for s in block)
                    while waiting and (pool.now + count > HELD or waiting[0].done):
                        settle()
                    numbers = assemble(leaf, part, block, read, dtype, pool, plan.where)
                    files = {}
                    for piece in cut(block, made.piece):
                        key = [str(s.start // n) for s, n in zip(piece, made.piece, strict=True)]
                        here = tuple(
                            slice(s.start - b.start, s.stop - b.start)
                            for s, b in zip(piece, block, strict=True)
                        )
                        future = store[piece].write(numbers[here])
                        files[folder.joinpath(part.path, "c", *key)] = future
                    last = part.path if block is blocks[-1] else None
                    waiting.append(_Write(files, numbers, last))
        while waiting:
            settle()
    finally:
        for written in waiting:
            for future in written.files.values():
                future.exception()  # their numbers must stay until they are written


def write_metadata(folder: Path, plan: Plan) -> None:
    """What makes a folder of zarr 3 arrays a checkpoint of Orbax; written last."""
    tree = {
        repr((part.path,)): {
            "key_metadata": [{"key": part.path, "key_type": 2}],
            "value_metadata": {
                "value_type": "jax.Array",
                "skip_deserialize": False,
                "write_shape": list(part.shape),
            },
        }
        for leaf in plan.leaves
        for part in leaf.parts
    }
    now = time.time_ns()
    handler = "orbax.checkpoint._src.handlers.standard_checkpoint_handler"
    contents = {
        "_CHECKPOINT_METADATA": {
            "item_handlers": f"{handler}.StandardCheckpointHandler",
            "metrics": {},
            "performance_metrics": {},
            "init_timestamp_nsecs": now,
            "commit_timestamp_nsecs": now,
            "custom_metadata": {},
        },
        "_METADATA": {
            "tree_metadata": tree,
            "use_ocdbt": False,
            "use_zarr3": True,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        },
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))


def _create(folder: Path, made: Grid, dtype: np.dtype) -> Any:
    import tensorstore as ts

    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding_codec = {
        "name": "sharding_indexed",
        "configuration": {"chunk_shape": made.chunk, "codecs": codecs},
    }
    # a file is written whole by one write, so nothing needs to be cached
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": os.fspath(folder) + "/"},
        "metadata": {
            "shape": made.shape,
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": made.piece}},
            "codecs": [sharding_codec],
        },
        "store_data_equal_to_fill_value": True,
    }
    return ts.open(spec, create=True, delete_existing=True).result()

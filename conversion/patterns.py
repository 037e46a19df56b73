"""One rule of a table with its sizes filled in: einops patterns as views of a tensor."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from einops import rearrange

from conversion.moves import move


@dataclasses.dataclass(frozen=True)
class Part:
    """One leaf of a rule and where its numbers lie in a source tensor.

    `shape` is the leaf's, stacked axes included; `left`, `right` one pattern with `axes` filled
    in. `rows` cuts the tensor first, `pick` takes one entry of the right side's first axis.
    """

    path: str
    shape: tuple[int, ...]
    left: str
    right: str
    axes: Mapping[str, int]
    rows: slice | None = None
    pick: int | None = None

    @property
    def tokens(self) -> tuple[tuple[str, ...], ...]:
        """The names of each axis of the leaf behind the stacked ones; () of a one."""
        return _tokens(self.right)[self.pick is not None :]

    def view(self, tensor: np.ndarray, **axes: int) -> np.ndarray:
        """The leaf's numbers in a tensor in our order, every named axis apart: never a copy.

        Writing to the view writes to the tensor. `axes` overrides sizes, for a tensor of some
        rows.
        """
        own = tensor if self.rows is None else tensor[self.rows]
        flat = self.right.replace("(", "").replace(")", "")
        out = rearrange(own, f"{self.left} -> {flat}", **{**self.axes, **axes})
        return out if self.pick is None else out[self.pick]

    def within(self, region: tuple[slice, ...]) -> Any:
        """A region of the leaf's axes behind the stacked ones, as an index into `view`.

        Axes made of several names must be whole in it.
        """
        index: list[slice] = []
        for token, part in zip(self.tokens, region, strict=True):
            index += [part] if len(token) < 2 else [slice(None)] * len(token)
        return (*index, ...)  # an array also where there is no axis


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One rule with every size filled in.

    `names` are the source tensors of `pattern` in row-major order of `stack`, each of
    `torch_shape`; `parts` are the leaves they fill.
    """

    pattern: str
    parts: tuple[Part, ...]
    names: tuple[str, ...]
    stack: tuple[int, ...]
    torch_shape: tuple[int, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the leaves."""
        return tuple(part.path for part in self.parts)

    @property
    def rows(self) -> tuple[str, int]:
        """(name, size) of the axis along which a tensor's rows can be cut; ("", 1) of none."""
        (part, *others), first = self.parts, _tokens(self.parts[0].left)[:1]
        name = first[0][0] if first and first[0] else ""
        if others or not name or (name,) not in part.tokens:
            return "", 1
        return name, part.axes[name]

    def indexed(self) -> Iterator[tuple[tuple[int, ...], str]]:
        """(index into the stacked axes, tensor name) of every source."""
        return zip(np.ndindex(*self.stack), self.names, strict=True)

    def backward(self, slices: tuple[np.ndarray, ...], dtype: Any = None) -> np.ndarray:
        """The slices of each leaf as one source tensor, contiguous."""
        tensor = np.empty(self.torch_shape, dtype or slices[0].dtype)
        for part, piece in zip(self.parts, slices, strict=True):
            view = part.view(tensor)
            move(view, piece.reshape(view.shape))
        return tensor


def leaf_of(
    torch: str, jax: str | tuple[str, ...], how: str | tuple[str, ...], sizes: Mapping[str, int]
) -> Leaf:
    """A rule's fields with every size filled in. Raises ValueError when they do not fit."""
    paths = (jax,) if isinstance(jax, str) else jax
    hows = (how,) if isinstance(how, str) else how
    stack = tuple(sizes[name] for name in _indexes(torch))
    parts: list[Part] = []
    first, rest = 0, None
    for pattern in hows:
        left, right = (side.strip() for side in pattern.split("->"))
        axes = {name: sizes.get(name, 0) for name in sorted(set(re.findall(r"[a-z_]\w*", pattern)))}
        for name in axes:
            if name not in sizes:
                raise ValueError(f"table: {torch!r}: no size for axis {name!r}")
        shape, (rows, *others) = _shape(right, axes), _shape(left, axes) or (1,)
        if len(hows) > 1:
            if len(hows) != len(paths) or others != (rest or others):
                raise ValueError(f"table: {torch!r}: patterns and leaves do not fit")
            cut = slice(first, first + rows)
            parts.append(Part(paths[len(parts)], stack + shape, left, right, axes, cut))
            first, rest = first + rows, others
            continue
        if len(paths) == 1:
            parts.append(Part(paths[0], stack + shape, left, right, axes))
        elif shape[0] != len(paths):
            raise ValueError(f"table: {torch!r} splits {shape[0]} ways into {len(paths)}")
        else:
            parts += [
                Part(path, stack + shape[1:], left, right, axes, pick=i)
                for i, path in enumerate(paths)
            ]
    whole = (first, *(rest or ())) if len(hows) > 1 else _shape(left, axes)
    return Leaf(torch, tuple(parts), tuple(names_of(torch, sizes)), stack, whole)


def _indexes(name: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", name)


def names_of(name: str, sizes: Mapping[str, int]) -> list[str]:
    """The tensors of a pattern, in row-major order of its `{indexes}`."""
    indexes = _indexes(name)
    ranges = (range(sizes[i]) for i in indexes)
    return [name.format(**dict(zip(indexes, at, strict=True))) for at in itertools.product(*ranges)]


def _tokens(side: str) -> tuple[tuple[str, ...], ...]:
    """The named axes of each entry of one side of a pattern: axes, ones, and (groups)."""
    groups = re.findall(r"\(([^)]*)\)|(\S+)", side)
    entries = ((group or axis).split() for group, axis in groups)
    return tuple(tuple(name for name in entry if name != "1") for entry in entries)


def _shape(side: str, axes: Mapping[str, int]) -> tuple[int, ...]:
    """Shape of one side of a pattern."""
    return tuple(math.prod(axes[name] for name in token) for token in _tokens(side))

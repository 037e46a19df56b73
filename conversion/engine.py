"""One table per architecture, read in both directions.

A table is a list of rules. A rule names a PyTorch tensor, the leaf of our parameter tree it
becomes, and an einops pattern whose arrow can be turned round:

    Rule("model.layers.{l}.self_attn.q_proj.weight", "blocks/attn/q/kernel", "(n h) d -> d n h")

`{l}` stands for 0 .. sizes["l"]-1; the tensors are stacked on a leading axis of our leaf. A tuple
of leaves splits the leading axis of the right side; with a pattern for each leaf it cuts the
tensor's rows. Axis sizes come from the config alone and are checked against the tensors: a config
that gives any tensor another shape is refused. What shapes do not show (the number of heads of one
width in all, an epsilon, the base of rope) is taken on the config's word. Numbers are moved, never
changed.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from conversion.moves import bits_equal, is_float, move
from conversion.patterns import Leaf, leaf_of, names_of
from mg_jax.errors import UserError, shown, some

LISTED = 40  # names shown per side of an error; the rest is counted
NAMED = 3  # names shown in one line


@dataclasses.dataclass(frozen=True)
class Rule:
    """Tensors `torch` <-> leaf `jax`, or several leaves.

    With one pattern `how` several leaves are the right side cut on its first axis, into as many.
    With a pattern for each leaf the tensor's rows are cut, in their order, as each left side says.
    """

    torch: str
    jax: str | tuple[str, ...]
    how: str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Tied:
    """`torch` is the same tensor as `source`: equal or absent on import, written on export."""

    torch: str
    source: str


@dataclasses.dataclass(frozen=True)
class Drop:
    """`torch` may be present and is not kept, because `why`; it is not written on export."""

    torch: str
    why: str


Entry = Rule | Tied | Drop


@dataclasses.dataclass(frozen=True)
class Table:
    """Rules, each bound to the axis sizes of its architecture. Tables add up."""

    entries: tuple[tuple[Entry, Mapping[str, int]], ...]

    def __add__(self, other: "Table") -> "Table":
        return Table(self.entries + other.entries)


def bind(rules: tuple[Entry, ...], sizes: Mapping[str, int]) -> Table:
    """Bind `rules` to the sizes of their axes and `{indexes}`."""
    return Table(tuple((rule, sizes) for rule in rules))


def under(torch: str, jax: str, inner: Table) -> Table:
    """`inner` with its tensor names under prefix `torch` and its leaves under prefix `jax`."""

    def move(rule: Entry) -> Entry:
        if isinstance(rule, Rule):
            paths = (rule.jax,) if isinstance(rule.jax, str) else rule.jax
            moved = tuple(jax + path for path in paths)
            return Rule(torch + rule.torch, moved if len(moved) > 1 else moved[0], rule.how)
        if isinstance(rule, Tied):
            return Tied(torch + rule.torch, torch + rule.source)
        return Drop(torch + rule.torch, rule.why)

    return Table(tuple((move(rule), sizes) for rule, sizes in inner.entries))


class TensorInfo(NamedTuple):
    """Shape and dtype of a stored tensor, without its bytes. `dtype` None: unknown."""

    shape: tuple[int, ...]
    dtype: np.dtype | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A table written out: every tensor and leaf by name and shape, no bytes.

    `tied` maps copies to their source and `dropped` names to reasons. In a plan made from a
    manifest these hold what the manifest has, and `dtypes` the dtypes of the sources. `where` is
    the path for messages.
    """

    leaves: tuple[Leaf, ...]
    tied: Mapping[str, str]
    dropped: Mapping[str, str]
    dtypes: Mapping[str, np.dtype | None] = dataclasses.field(default_factory=dict)
    where: str = "checkpoint"

    def torch_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor an export writes."""
        shapes = {name: leaf.torch_shape for leaf in self.leaves for name in leaf.names}
        return shapes | {copy: shapes[source] for copy, source in self.tied.items()}

    def jax_shapes(self) -> dict[str, tuple[int, ...]]:
        """Path -> shape of every leaf."""
        return {part.path: part.shape for leaf in self.leaves for part in leaf.parts}

    def abstract(self, dtype: Any = None) -> dict[str, Any]:
        """The parameter tree as jax.ShapeDtypeStruct, in `dtype` or the sources' own."""
        import jax

        flat: dict[str, Any] = {}
        for leaf in self.leaves:
            kept = dtype or self.dtypes.get(leaf.names[0]) or np.float32
            flat |= {part.path: jax.ShapeDtypeStruct(part.shape, kept) for part in leaf.parts}
        return unflatten(flat)


def expand(table: Table, where: str = "parameters") -> Plan:
    """Write a table out. Raises ValueError when the table itself is at fault."""
    leaves: list[Leaf] = []
    tied: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for rule, sizes in table.entries:
        if isinstance(rule, Rule):
            leaves.append(leaf_of(rule.torch, rule.jax, rule.how, sizes))
        elif isinstance(rule, Tied):
            sources = names_of(rule.source, sizes)
            tied.update(zip(names_of(rule.torch, sizes), sources, strict=True))
        else:
            dropped.update(dict.fromkeys(names_of(rule.torch, sizes), rule.why))
    names = [name for leaf in leaves for name in leaf.names]
    paths = [path for leaf in leaves for path in leaf.paths]
    for what, listed in (("tensor", [*names, *tied, *dropped]), ("leaf", paths)):
        seen: set[str] = set()
        for name in listed:
            if name in seen:
                raise ValueError(f"table: {what} {name!r} is named by more than one rule")
            seen.add(name)
    known = set(names)
    for copy, source in tied.items():
        if source not in known:
            raise ValueError(f"table: {copy!r} is tied to {source!r}, which no rule names")
    return Plan(tuple(leaves), tied, dropped, where=where)


def plan(manifest: Mapping[str, Any], table: Table, where: str = "checkpoint") -> Plan:
    """Match a checkpoint's names and shapes with a table, reading no bytes.

    `manifest` maps names to shapes, or to anything with `.shape` (and `.dtype`). Tied copies and
    dropped tensors may be absent, nothing else. Raises UserError that lists the names only in the
    checkpoint (+), the names only in the model (-) and the wrong shapes (!), or the tensors that
    hold no floating-point numbers, as those of quantised weights do.
    """
    full = expand(table)
    infos = {name: _info(value) for name, value in manifest.items()}
    expected = full.torch_shapes()
    extra = [
        f"+ {shown(name)} {list(info.shape)}"
        for name, info in infos.items()
        if name not in expected and name not in full.dropped
    ]
    missing = [
        f"- {name} {list(shape)}"
        for name, shape in expected.items()
        if name not in infos and name not in full.tied
    ]
    wrong = [
        f"! {name} {list(infos[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in infos and infos[name].shape != shape
    ]
    _report(where, extra, missing, wrong)
    _refuse_whole_numbers(where, {name: infos[name].dtype for name in expected if name in infos})
    return Plan(
        full.leaves,
        {copy: source for copy, source in full.tied.items() if copy in infos},
        {name: why for name, why in full.dropped.items() if name in infos},
        {name: info.dtype for name, info in infos.items()},
        where,
    )


def check_copies(read: Callable[[str], np.ndarray], plan: Plan) -> None:
    """Raises UserError when a tied copy of a checkpoint differs from its source."""
    for copy, source in plan.tied.items():
        if not bits_equal(read(copy), read(source)):
            raise UserError(f"{plan.where}: {copy} should equal {source}, but differs")


def read_tensor(read: Callable[[str], np.ndarray], leaf: Leaf, name: str, where: str) -> np.ndarray:
    """One source tensor of a leaf. Raises UserError when its shape is not what the plan knew."""
    tensor = np.asarray(read(name))
    if tensor.shape != leaf.torch_shape:
        shapes = f"{list(tensor.shape)}, expected {list(leaf.torch_shape)}"
        raise UserError(f"{where}: {name} has shape {shapes}")
    return tensor


def iter_jax(
    read: Callable[[str], np.ndarray], plan: Plan, dtype: Any = None
) -> Iterator[tuple[str, np.ndarray]]:
    """(path, array) leaf by leaf; in memory are one leaf and one source tensor.

    `read(name)` gives a tensor. The dtype is the source's unless `dtype` asks for a cast of
    floats. Raises UserError when a tied copy differs from its source or the layers of a leaf
    differ in dtype.
    """
    check_copies(read, plan)
    for leaf in plan.leaves:
        filled: list[np.ndarray] = []
        for index, name in leaf.indexed():
            tensor = read_tensor(read, leaf, name, plan.where)
            kept = np.dtype(dtype if dtype and is_float(tensor.dtype) else tensor.dtype)
            if not filled:
                filled = [np.empty(part.shape, kept) for part in leaf.parts]
            if filled[0].dtype != kept:
                raise UserError(
                    f"{plan.where}: {name} is {kept}, {leaf.names[0]} is {filled[0].dtype}; "
                    "ask for one dtype to stack them"
                )
            for out, part in zip(filled, leaf.parts, strict=True):
                view = part.view(tensor)
                at: Any = (*index, ...)
                move(out[at].reshape(view.shape), view)
        yield from zip(leaf.paths, filled, strict=True)


def to_jax(read: Callable[[str], np.ndarray], plan: Plan, dtype: Any = None) -> dict[str, Any]:
    """The whole parameter tree as nested dicts of numpy arrays. See `iter_jax`."""
    return unflatten(dict(iter_jax(read, plan, dtype)))


def iter_torch(
    params: Mapping[str, Any], table: Table, dtype: Any = None
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor) one by one, tied copies included.

    `params` is the nested tree. Raises UserError listing the leaves only in the parameters (+),
    only in the table (-), and the wrong shapes (!).
    """
    full, leaves = expand(table), flatten(params)
    check_leaves({path: tuple(leaf.shape) for path, leaf in leaves.items()}, full)
    copies: dict[str, list[str]] = {}
    for copy, source in full.tied.items():
        copies.setdefault(source, []).append(copy)
    for leaf in full.leaves:
        whole = tuple(np.asarray(leaves[path]) for path in leaf.paths)
        for index, name in leaf.indexed():
            at: Any = (*index, ...)
            tensor = leaf.backward(tuple(part[at] for part in whole), dtype)
            for written in (name, *copies.get(name, ())):
                yield written, tensor


def check_leaves(shapes: Mapping[str, tuple[int, ...]], plan: Plan) -> None:
    """Raises UserError, as `iter_torch` says, when leaves of these shapes do not fit a plan."""
    expected = plan.jax_shapes()
    extra = [f"+ {path} {list(shape)}" for path, shape in shapes.items() if path not in expected]
    missing = [f"- {path} {list(shape)}" for path, shape in expected.items() if path not in shapes]
    wrong = [
        f"! {path} {list(shapes[path])}, expected {list(shape)}"
        for path, shape in expected.items()
        if path in shapes and shapes[path] != shape
    ]
    _report(plan.where, extra, missing, wrong)


def to_torch(params: Mapping[str, Any], table: Table, dtype: Any = None) -> dict[str, np.ndarray]:
    """The whole state dict as numpy arrays under upstream's names. See `iter_torch`."""
    return dict(iter_torch(params, table, dtype))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> {"a/b/c": leaf}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b/c": leaf} -> nested dicts."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def _info(value: Any) -> TensorInfo:
    if hasattr(value, "shape"):
        return TensorInfo(tuple(value.shape), getattr(value, "dtype", None))
    return TensorInfo(tuple(value))


def _refuse_whole_numbers(where: str, dtypes: Mapping[str, Any]) -> None:
    """Raises UserError naming the parameters whose dtype is known and no float."""
    odd = [
        f"{name} is {dtype}"
        for name, dtype in dtypes.items()
        if isinstance(dtype, np.dtype) and not is_float(dtype)
    ]
    if odd:
        raise UserError(
            f"{where}: {', '.join(some(odd, NAMED))}: every parameter is of floating-point "
            "numbers; quantised weights are not read, so convert the whole ones"
        )


def _report(where: str, extra: list[str], missing: list[str], wrong: list[str]) -> None:
    if not (extra or missing or wrong):
        return
    lines = [
        f"{where}: does not fit the model of its config: {len(extra)} only there (+), "
        f"{len(missing)} only in the model (-), {len(wrong)} of another shape (!)"
    ]
    lines += [f"  {line}" for side in (extra, missing, wrong) for line in some(side, LISTED)]
    raise UserError("\n".join(lines))

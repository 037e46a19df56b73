"""Where every array lives on a mesh: logical axis names, rule presets, meshes, sharded init.

A parameter names its axes once, where it is born (`nn.param`). A preset in `RULES` says which
mesh axis each logical name is split over. One device is the 1x1x1 mesh of the same path.
Mesh axes: `data` (batch replicas), `fsdp` (batch, and parameters split), `tensor` (heads, mlp,
vocabulary). All axes are Auto: XLA propagates the shardings that are pinned here.
"""

import contextlib
import contextvars
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import numpy as np
from flax.core import meta
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mg_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

_BATCH = {"batch": ("data", "fsdp")}
_WHOLE = dict.fromkeys(
    (
        "layers", "embed", "embed_out", "heads", "kv_heads", "head", "mlp", "vocab", "new_vocab",
        "conv", "conv_in", "conv_out", "grid", "levels", "points", "queries", "coord", "taps",
        "seq", "keys", "act_embed", "act_heads", "act_kv_heads", "act_mlp", "act_vocab", "regions",
    )
)  # fmt: skip

# Logical axis name -> mesh axis (or None: not split). One table a preset, no other place.
RULES: dict[str, dict[str, Any]] = {
    "replicated": {**_WHOLE, **_BATCH},
    "fsdp": {**_WHOLE, **_BATCH, "embed": "fsdp", "conv_in": "fsdp"},
    "fsdp_tensor": {
        **_WHOLE,
        **_BATCH,
        "embed": "fsdp",
        "conv_in": "fsdp",
        "conv_out": "tensor",
        "embed_out": "tensor",
        "heads": "tensor",
        "kv_heads": "tensor",
        "mlp": "tensor",
        "vocab": "tensor",
        "act_heads": "tensor",
        "act_kv_heads": "tensor",
        "act_mlp": "tensor",
        "act_vocab": "tensor",
    },
}
# Where an axis goes that no dimension has taken, since the one it was meant for does not divide:
# first choice of the rules -> (logical name, in its place). Looked up for two dimensions or more.
INSTEAD = {
    "conv_in": ("conv_out",),  # RGB, and maps with two coordinate channels
    "embed": ("embed_out", "conv_out"),
    "heads": ("head",),
    "kv_heads": ("head",),
    "batch": ("keys",),  # a cache of fewer rows than devices
    "act_kv_heads": ("keys",),  # fewer key heads than devices: each device keeps part of the text
    "vocab": ("embed",),  # an odd number of tokens
}
# Axes along which parameters are stored in pieces, but not used so: behind activations with split
# channels XLA's partitioner returned wrong gradients (seen with jax 0.10 on CPU devices)
STORED = ("conv_out", "embed_out")
LARGE = 16 * 2**20  # bytes from which an array should be split where it can be

_RULES: contextvars.ContextVar[Mapping[str, Any] | None] = contextvars.ContextVar(
    "sharding_rules", default=None
)
_MESH: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


class Named(flax.struct.PyTreeNode, meta.AxisMetadata):
    """A parameter together with its logical axis names; lives only until init ends."""

    value: Any
    names: tuple = flax.struct.field(pytree_node=False)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "Named":
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict) -> "Named":
        names = list(self.names)
        names.insert(index, params[nn.PARTITION_NAME])
        return self.replace(names=tuple(names))

    def remove_axis(self, index: int, params: dict) -> "Named":
        names = list(self.names)
        names.pop(index)
        return self.replace(names=tuple(names))


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices=None) -> Mesh:
    """Mesh (data, fsdp, tensor) over `devices` (default: all). One size may be -1: the rest.

    On TPUs the axes follow the links between chips, as far as the sizes allow. Raises UserError
    for a size of 0, and when the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor]
    for axis, size in zip(MESH_AXES, sizes, strict=True):
        if size < 1 and size != -1:
            raise UserError(f"mesh.{axis}={size}: a size is 1 or more, or -1 for the rest")
    if sizes.count(-1) > 1:
        raise UserError(f"mesh {sizes}: only one size may be -1")
    known = math.prod(s for s in sizes if s != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(len(devices) // known, 1)
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"mesh data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]} needs {math.prod(sizes)} "
            f"devices, but there are {len(devices)}: change the sizes so that they multiply to it"
        )
    return Mesh(_arranged(devices, sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _arranged(devices: list, sizes: list[int]) -> np.ndarray:
    if devices[0].platform == "tpu" and len(devices) > 1:
        from jax.experimental import mesh_utils

        try:
            return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        except (NotImplementedError, ValueError, AssertionError):
            pass  # part of a slice, or a shape its links do not have: any order works, only slower
    return np.asarray(devices).reshape(sizes)


@contextlib.contextmanager
def use(mesh: Mesh | None, rules: str | Mapping[str, Any] = "fsdp"):
    """Inside, `shard` constrains activations on `mesh` by the preset (or table) `rules`."""
    table = RULES[rules] if isinstance(rules, str) else rules
    tokens = _RULES.set(table), _MESH.set(mesh)
    try:
        yield mesh
    finally:
        _RULES.reset(tokens[0])
        _MESH.reset(tokens[1])


def check(mesh: Mesh, rules: str) -> None:
    """Raises UserError for a name that is not one of RULES, and where no rule of it splits anything
    over an axis that `mesh` has: all devices along it would do the same work."""
    if rules not in RULES:
        raise UserError(f"config.rules: {rules!r} is not one of {', '.join(RULES)}")

    def named(preset: str) -> set[str]:
        return {axis for axes in RULES[preset].values() for axis in _several(axes)}

    for axis, size in mesh.shape.items():
        if size > 1 and axis not in named(rules):
            others = " or ".join(p for p in RULES if axis in named(p))
            raise UserError(
                f"mesh.{axis}={size}: no rule of config.rules={rules} names {axis}, so that "
                f"{size} devices would do the same: set config.rules={others}, or mesh.{axis}=1"
            )


def _several(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def mesh_in_use() -> Mesh | None:
    """The mesh of the innermost `use`, if any."""
    return _MESH.get()


def spec(
    names: tuple[str | None, ...],
    shape: tuple[int, ...] | None = None,
    *,
    mesh: Mesh | None = None,
    rules: str | Mapping[str, Any] | None = None,
) -> PartitionSpec:
    """PartitionSpec of an array whose dimensions have these logical `names`.

    A mesh axis already used by an earlier dimension is an error. A dimension that its mesh axes
    do not divide is left whole, and INSTEAD may name another for them. Raises ValueError naming
    the axis.
    """
    mesh = mesh if mesh is not None else _MESH.get()
    table = RULES[rules] if isinstance(rules, str) else (rules or _RULES.get() or RULES["fsdp"])
    entries: list[tuple[str, ...]] = []
    left: list[tuple[str, tuple[str, ...]]] = []  # what did not divide: (name, its mesh axes)
    for i, name in enumerate(names):
        if name is not None and name not in table:
            raise ValueError(f"unknown logical axis {name!r} in {names}: add it to sharding.RULES")
        axes = () if name is None else _several(table[name])
        used = {a for entry in entries for a in entry}
        if used & set(axes):
            raise ValueError(f"mesh axis {used & set(axes)} used twice by {names}")
        if name is not None and axes and not _divides(shape, i, axes, mesh):
            left.append((name, axes))
            axes = ()
        entries.append(axes)
    for name, axes in left if len(names) > 1 else ():
        for i, other in enumerate(names):
            used = {a for entry in entries for a in entry}
            fits = other in INSTEAD.get(name, ()) and not used & set(axes)
            if fits and _divides(shape, i, (*entries[i], *axes), mesh):
                entries[i] = (*entries[i], *axes)
    while entries and not entries[-1]:
        entries.pop()
    return PartitionSpec(*(e if len(e) > 1 else (e[0] if e else None) for e in entries))


def _divides(shape, i: int, axes: tuple[str, ...], mesh: Mesh | None) -> bool:
    if shape is None or mesh is None:
        return True
    ways = math.prod(mesh.shape[a] for a in axes)
    return ways > 1 and shape[i] % ways == 0


def shard(x: jax.Array, *names: str | None) -> jax.Array:
    """Constrain activation `x` to the mesh in use; without one, `x` itself."""
    mesh = _MESH.get()
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(names, x.shape)))


def gathered(names: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """The names of a parameter's dimensions where it is used: STORED ones are whole."""
    return tuple(None if name in STORED else name for name in names)


def batch_sharding(mesh: Mesh, ndim: int = 1) -> NamedSharding:
    """Sharding of a batch array: first dimension over `data` and `fsdp`, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), *(None,) * (ndim - 1)))


def unsplit(tree: Any, axes: tuple[str, ...] = ("fsdp", "tensor"), limit: int = LARGE) -> list[str]:
    """Arrays of `tree` (or ShapeDtypeStructs) of more than `limit` bytes that lie whole along one
    of `axes`, or on every device, although an axis of their mesh divides what a device holds of
    one of their dimensions: a line each."""
    lines = []
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        size = math.prod(x.shape) * x.dtype.itemsize
        if size <= limit:
            continue
        used = {a for entry in x.sharding.spec for a in _several(entry)}
        part = x.sharding.shard_shape(x.shape)
        could = [
            a for a, n in x.sharding.mesh.shape.items()
            if n > 1 and a not in used and any(d % n == 0 for d in part)
        ]  # fmt: skip
        if set(could) & set(axes) or (could and x.sharding.is_fully_replicated):
            lines.append(
                f"{jax.tree_util.keystr(path)} {list(x.shape)} {x.dtype} {size:,} bytes, "
                f"whole along {' and '.join(could)}"
            )
    return lines


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Host batch (this process's rows) -> global arrays split over the batch axes of `mesh`.

    The rows of all processes together are the batch, so no two of them may hold the same ones: a
    tensor axis stays within a process. Raises UserError naming mesh.tensor where it does not, and
    when the rows do not divide over the mesh.
    """
    count, ways = jax.process_count(), mesh.shape["data"] * mesh.shape["fsdp"]
    groups = mesh.devices.reshape(ways, -1)  # of devices that hold the same rows
    own = sum(any(d.process_index == jax.process_index() for d in group) for group in groups)
    if own * count != ways:
        raise UserError(
            f"mesh.tensor={mesh.shape['tensor']}: this process holds {own} of {ways} parts of a "
            f"batch (mesh data x fsdp), and so do others of the {count} processes, though each "
            "reads rows of its own: lower mesh.tensor"
        )

    def put(x):
        x = np.asarray(x)
        if x.ndim == 0:
            return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec()), x)
        whole = (x.shape[0] * count, *x.shape[1:])
        if whole[0] % ways:
            raise UserError(
                f"batch of {whole[0]} rows does not divide over {ways} devices (mesh data x "
                "fsdp): change batch_size or the mesh"
            )
        return jax.make_array_from_process_local_data(batch_sharding(mesh, x.ndim), x, whole)

    return jax.tree.map(put, batch)


def param_names(abstract: Any) -> Any:
    """Tree of logical axis names, from the (abstract) boxed output of `Module.init`."""
    return jax.tree.map(lambda b: b.names, abstract, is_leaf=lambda b: isinstance(b, Named))


def param_shardings(abstract: Any, mesh: Mesh, rules: str | Mapping[str, Any]) -> Any:
    """Tree of NamedSharding for the boxed (abstract) parameters."""

    def one(b):
        return NamedSharding(mesh, spec(b.names, b.value.shape, mesh=mesh, rules=rules))

    return jax.tree.map(one, abstract, is_leaf=lambda b: isinstance(b, Named))


def unbox(tree: Any) -> Any:
    """Drop the axis names: a plain dict of arrays (or ShapeDtypeStructs)."""
    return jax.tree.map(
        lambda b: b.value if isinstance(b, Named) else b,
        tree,
        is_leaf=lambda b: isinstance(b, Named),
    )


def abstract_params(init, *args) -> Any:
    """Boxed abstract parameters of `init(*args)['params']`, without computing anything."""
    return jax.eval_shape(init, *args)["params"]


def init_sharded(init, mesh: Mesh, rules: str, key: jax.Array, *args) -> tuple[Any, Any]:
    """Initialise parameters directly on their devices.

    `init(key, *args)` is a `Module.init`. Returns (params, shardings): a plain nested dict of
    float32 arrays laid out by `rules` on `mesh`, and the tree of their NamedShardings.
    """
    boxed = abstract_params(init, key, *args)
    shardings = param_shardings(boxed, mesh, rules)

    def fresh(key):
        return unbox(init(key, *args)["params"])

    return jax.jit(fresh, out_shardings=shardings)(key), shardings

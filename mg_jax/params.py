"""Arrays on disk, flat by path ("a/b/c"): Orbax folders and .safetensors files."""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from mg_jax.disk import disk_errors, need_space, read_json
from mg_jax.errors import UserError
from mg_jax.optim import Flat

STORED = {
    "F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


def stored(tree: Any) -> float:
    """Bytes that the arrays of `tree` take on disk: floats compress by about a tenth."""
    return 0.9 * sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class Unread:
    """An array of a file: `shape` and `dtype` now, the numbers by `np.asarray`, each time anew."""

    file: "ParamFile"
    path: str
    shape: tuple[int, ...]
    dtype: Any

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        x = self.file.leaf(self.path)
        return x if dtype is None else x.astype(dtype, copy=False)


class ParamFile:
    """Parameters on disk, flat by path: `shapes` now, the numbers when `read`."""

    def __init__(self, path: Path):
        """`path`: an Orbax folder or a .safetensors file. Raises UserError if it is neither."""
        self.path = Path(path).absolute()
        try:
            self.shapes = self._safetensors() if self._is_file else self._orbax()
        except Exception as e:
            reason = str(e).split("\n")[0][:200]
            raise UserError(f"{self.path}: parameters cannot be read ({reason})") from e

    def read(self, abstract: Flat | None = None, grow: Mapping[str, int] | None = None) -> Flat:
        """Every array; cast and laid out as the ShapeDtypeStructs of `abstract`, where given.

        Without it: numpy arrays or arrays of one device, in the stored dtype. `grow`: path -> axis
        along which `abstract` has more entries; the mean of those stored fills the last ones.
        """
        wanted, grow = abstract or self.shapes, grow or {}
        smaller = {p: whole_along(wanted[p], a, self.shapes[p].shape) for p, a in grow.items()}
        found = self._read({**wanted, **smaller})
        return found | {p: grown(found[p], wanted[p], a) for p, a in grow.items()}

    def _read(self, abstract: Flat) -> Flat:
        if not self._is_file:
            with ocp.StandardCheckpointer() as c:
                return c.restore(self.path, {p: abstract[p] for p in self.shapes})
        from safetensors import safe_open

        with safe_open(self.path, "np") as f:
            return {p: place(f.get_tensor(p), abstract[p]) for p in self.shapes}

    def leaf(self, path: str) -> np.ndarray:
        """One array, in the stored dtype; beside it, its compressed bytes at most."""
        if not self._is_file:
            return open_array(self.path, path).read().result()
        from safetensors import safe_open

        with safe_open(self.path, "np") as f:
            return f.get_tensor(path)

    def unread(self) -> Flat:
        """Every array as one that is read when `np.asarray` is taken of it."""
        return {p: Unread(self, p, tuple(x.shape), x.dtype) for p, x in self.shapes.items()}

    @property
    def _is_file(self) -> bool:
        return self.path.suffix == ".safetensors"

    def _orbax(self) -> Flat:
        with ocp.StandardCheckpointer() as c:
            tree = c.metadata(self.path).item_metadata.tree
        return {p: jax.ShapeDtypeStruct(m.shape, m.dtype) for p, m in tree.items()}

    def _safetensors(self) -> Flat:
        from safetensors import safe_open

        with safe_open(self.path, "np") as f:
            slices = {p: f.get_slice(p) for p in f.keys()}  # noqa: SIM118
            return {
                p: jax.ShapeDtypeStruct(tuple(s.get_shape()), jnp.dtype(STORED[s.get_dtype()]))
                for p, s in slices.items()
            }


def open_array(folder: Path, path: str) -> Any:
    """An array of an Orbax folder, unread, as TensorStore opens it: Orbax reads whole folders, and
    holds on to what it has read."""
    import tensorstore as ts

    meta = read_json(folder / "_METADATA")
    root = os.fspath(folder.absolute())
    if (folder / "manifest.ocdbt").exists():
        kvstore = {"driver": "ocdbt", "base": f"file://{root}/", "path": f"{path}/"}
    else:
        kvstore = {"driver": "file", "path": f"{root}/{path}/"}
    spec = {
        "driver": "zarr3" if meta.get("use_zarr3") else "zarr",
        "kvstore": kvstore,
        "fill_missing_data_reads": False,
    }
    return ts.open(spec, read=True).result()


def place(x: np.ndarray, like: jax.ShapeDtypeStruct) -> Any:
    """A host array, cast and laid out as `like`; without a sharding it stays a host array."""
    x = np.asarray(x).astype(like.dtype, copy=False)
    if like.sharding is None:
        return x
    return jax.make_array_from_callback(x.shape, like.sharding, lambda index: x[index])


def whole_along(like: Any, axis: int, shape: tuple[int, ...]) -> Any:
    """`like` of another `shape`, not split along `axis`: its size there may not divide."""
    spec = [*like.sharding.spec]
    spec[axis : axis + 1] = [None] * len(spec[axis : axis + 1])
    whole = NamedSharding(like.sharding.mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, like.dtype, sharding=whole)


def grown(x: jax.Array, like: Any, axis: int) -> jax.Array:
    """`x`, and behind it along `axis` its mean, as often as makes it as large as `like`."""

    def fill(x):
        mean = x.astype(jnp.float32).mean(axis, keepdims=True).astype(x.dtype)
        return jnp.concatenate([x, jnp.repeat(mean, like.shape[axis] - x.shape[axis], axis)], axis)

    return jax.jit(fill, out_shardings=like.sharding)(x)


def save_params(path: Path, params: Flat) -> None:
    """Write a flat tree as an Orbax folder, replacing one that is there."""
    with disk_errors(path), ocp.StandardCheckpointer() as c:
        need_space(Path(path).absolute(), stored(params))
        c.save(Path(path).absolute(), params, force=True)
        c.wait_until_finished()

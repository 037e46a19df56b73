"""Operators without parameters: RoIAlign, box means, deformable attention, points, resizing.

Forms of one operator have equal values and gradients. `method="auto"` picks one by platform and
size; `max_bytes` bounds the largest temporary *per image*, so that the choice does not depend on
how the batch is sharded.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from mg_jax.sharding import mesh_in_use


def platform() -> str:
    """Platform that the code being traced is meant for: "cpu", "gpu" or "tpu".

    The mesh in use decides (`sharding.use`, else `jax.set_mesh`), so that a compilation for an
    absent TPU slice gets the TPU's form; without a mesh it is JAX's default backend.
    """
    mesh = mesh_in_use()
    if mesh is not None:
        name = mesh.devices.flat[0].platform
    else:
        device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
        name = getattr(device, "platform", None) or jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name


def chunk_size(rows: int, bytes_per_row: int, max_bytes: int) -> int:
    """Most rows, at least 1, whose temporaries stay within `max_bytes`; chunks of equal size."""
    rows = max(1, rows)
    fitting = max(1, min(rows, max_bytes // max(1, bytes_per_row)))
    return math.ceil(rows / math.ceil(rows / fitting))


def map_chunks(fn: Callable[..., Array], chunk: int, *arrays: Array) -> Array:
    """`fn(*arrays)` computed over chunks of axis 1, one after the other.

    `fn` maps arrays [B,n,...] to [B,n,...] for any n, row by row. Each chunk is rematerialised in
    the backward pass, so a gradient needs no more temporaries at once than the forward pass.
    """
    rows = arrays[0].shape[1]
    count = math.ceil(rows / max(1, chunk))
    if count <= 1:
        return fn(*arrays)

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, count * chunk - rows)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], count, chunk, *x.shape[2:]), 1, 0)

    out = jax.lax.map(lambda xs: jax.checkpoint(fn)(*xs), tuple(split(x) for x in arrays))
    out = jnp.moveaxis(out, 0, 1)
    return out.reshape(out.shape[0], count * chunk, *out.shape[3:])[:, :rows]

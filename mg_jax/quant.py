"""Kernels of the language model in 8 or 4 bits, to answer with on small devices.

A kernel k becomes integers q and scales s with k = q * s: of int8 one scale an output, of int4 one
for each group of at most nn.GROUP inputs and output, so that one large weight spoils little.
Parameters are done one after the other and layers too: beside the result there is never more than
one parameter as it was, and one layer in float32.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from mg_jax import sharding
from mg_jax.errors import UserError
from mg_jax.models import System
from mg_jax.nn import QUANTS
from mg_jax.optim import Flat, flatten

MOST = {"int8": 127, "int4": 7}
_TYPES = {"int8": np.dtype(np.int8), "int4": np.dtype(ml_dtypes.int4)}


def check(quant: str) -> None:
    """Raises UserError for a name that is not one of QUANTS."""
    if quant not in QUANTS:
        raise UserError(f"quantize={quant!r}: it is one of {', '.join(QUANTS)}")


def scale_shapes(system: System, stage: str) -> dict[str, tuple[int, ...]]:
    """{path of kernel_scale: its shape} of a system whose config says `quant`."""
    boxed = sharding.abstract_params(system.init(stage), jax.random.key(0))
    shapes = flatten(sharding.unbox(boxed))
    return {p: x.shape for p, x in shapes.items() if p.endswith("/kernel_scale")}


def quantized(path: str, x: Any, scales: Mapping[str, tuple], quant: str) -> Flat:
    """What becomes of one parameter: a kernel that `scales` (of `scale_shapes`) speaks of as
    integers, and its kernel_scale beside it; another stays as it is."""
    scale = f"{path}_scale"
    if scale not in scales:
        return {path: x}
    stacked = "blocks" in path.split("/")
    values, steps = quantize(np.asarray(x), scales[scale], quant, stacked)
    return {path: values, scale: steps}


def quantize(
    kernel: np.ndarray, scale_shape: tuple, quant: str, stacked: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(integers of the kernel's shape, float32 scales of `scale_shape`).

    `scale_shape` is [groups, out...]; `stacked`: both have a leading axis of layers.
    """
    if not stacked:
        return _one(kernel, scale_shape, quant)
    values = np.empty(kernel.shape, _TYPES[quant])
    scales = np.empty(scale_shape, np.float32)
    for i, layer in enumerate(kernel):
        values[i], scales[i] = _one(layer, scale_shape[1:], quant)
    return values, scales


def _one(kernel: np.ndarray, scale_shape: tuple, quant: str) -> tuple[np.ndarray, np.ndarray]:
    most = MOST[quant]
    parts = kernel.astype(np.float32).reshape(scale_shape[0], -1, *scale_shape[1:])
    scale = np.maximum(np.abs(parts).max(1), 1e-12) / most
    values = np.clip(np.rint(parts / scale[:, None]), -most, most)
    return values.reshape(kernel.shape).astype(_TYPES[quant]), scale.astype(np.float32)


def needed(
    shapes: Mapping[str, Any], lm: Mapping[str, Any], dtype: str, positions: int
) -> dict[str, float]:
    """Bytes that a model takes to answer with: `params`, and `cache` of one row of `positions`.

    `shapes`: parameters by path, with `shape` and `dtype`, of a system whose config says `quant`;
    `lm`: the config of its language model. Integers and their scales stay, floats become `dtype`.
    """
    wide = np.dtype(jax.numpy.dtype(dtype)).itemsize
    params = 0.0
    for path, x in shapes.items():
        size = float(wide)
        if jax.numpy.issubdtype(x.dtype, jax.numpy.integer):
            size = jax.numpy.iinfo(x.dtype).bits / 8
        elif path.endswith("/kernel_scale"):
            size = 4.0
        params += math.prod(x.shape) * size
    kept = 2 * lm["layers"] * lm["kv_heads"] * lm["head"] * positions * wide
    return {"params": params, "cache": kept}

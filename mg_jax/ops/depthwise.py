"""Depthwise convolution: every channel with its own small kernel."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from mg_jax.sharding import shard


def depthwise(x: Float[Array, "B Y X C"], kernel: Float[Array, "y x C"]) -> Float[Array, "B Y X C"]:
    """Cross-correlation with zero padding, stride 1; the output has the size of the input.

    One shifted, scaled copy of the map is added per kernel element, in float32; the result has the
    dtype of `x`. XLA's grouped convolution is no alternative: on CPU it took 10 to 20 times as long
    (7 x 7, forward and backward), and on a mesh with the batch and the kernel over one axis the
    kernel's gradient came out doubled though the kernel was gathered first (jax 0.10, CPU devices).
    Raises ValueError for kernel sides that are even and for channels that disagree.
    """
    rows, cols, channels = kernel.shape
    if rows % 2 == 0 or cols % 2 == 0 or channels != x.shape[-1]:
        raise ValueError(
            f"depthwise: kernel {kernel.shape} for {x.shape[-1]} channels; its sides must be odd "
            "and its channels those of the map"
        )
    kernel = shard(kernel, None, None, None).astype(jnp.float32)
    height, width = x.shape[1:3]
    around = ((0, 0), (rows // 2, rows // 2), (cols // 2, cols // 2), (0, 0))
    padded = jnp.pad(x.astype(jnp.float32), around)
    out = jnp.zeros(x.shape, jnp.float32)
    for i in range(rows):
        for j in range(cols):
            out += padded[:, i : i + height, j : j + width] * kernel[i, j][None, None, None]
    return out.astype(x.dtype)

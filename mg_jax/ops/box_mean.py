"""RoIAlign followed by the mean over its bins, without bins and without an enlarged map.

MG-LLaVA describes a box by the mean of torchvision's RoIAlign (56 x 56 bins, `aligned=False`,
as many samples per bin as the box is large) on all stages of an encoder, enlarged to the finest
one and joined on channels (spec 2.5). The samples of a box form a lattice, so their mean is
w_y^T F w_x with one row of weights per axis, and the enlargement is linear, so its matrix moves
into the weights: nothing of the size of the joined map (425 MB a picture as published) exists.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from mg_jax import ops
from mg_jax.ops.resize import linear_matrix

MAX_BYTES = 256 * 2**20
BINS = 56  # a side, in the published code; the paper names no number
HIGHEST = jax.lax.Precision.HIGHEST


def box_mean(
    maps: Sequence[Float[Array, "B Y X C"]],
    boxes: Float[Array, "B R 4"],
    canvas: float,
    *,
    bins: int = BINS,
    max_bytes: int = MAX_BYTES,
) -> Float[Array, "B R C"]:
    """Mean feature of every box, the channels of all maps one after the other; float32.

    `boxes`: x1, y1, x2, y2 in units in which the picture is `canvas` wide and high; they must lie
    within it, and have no gradient. `maps`: square, finest first; each is read as if enlarged
    bilinearly to the first. Boxes are at least one cell of the first map wide and high; samples
    beyond the map's end count as 0 (a box [canvas, y, canvas, y] is all zero, as published).
    Boxes are taken in chunks where temporaries for one picture would exceed `max_bytes`. Raises
    ValueError for maps that are not square.
    """
    if any(m.shape[1] != m.shape[2] for m in maps):
        raise ValueError(f"box_mean: maps {[m.shape[1:3] for m in maps]} must be square")
    side = maps[0].shape[1]
    # The barrier keeps x2 * scale - x1 * scale from becoming one fused operation, whose other
    # rounding would change the number of samples of a box that is an exact multiple of the bins.
    scaled = boxes.astype(jnp.float32) * np.float32(side / canvas)
    x1, y1, x2, y2 = jnp.moveaxis(jax.lax.optimization_barrier(scaled), -1, 0)
    weights = axis_weights(y1, y2, side, bins), axis_weights(x1, x2, side, bins)
    weights = jax.lax.stop_gradient(weights)
    return jnp.concatenate([_read(m, weights, side, max_bytes) for m in maps], -1)


def _read(features, weights, side, max_bytes):
    """[B,Y,X,C] read by rows of weights (y, x) [B,R,side] of the map enlarged to `side`."""
    rows = jnp.asarray(linear_matrix(side, features.shape[1]))
    y, x = (jnp.einsum("brs,sy->bry", w, rows, precision=HIGHEST) for w in weights)
    features = features.astype(jnp.float32)

    def pool(y: Array, x: Array) -> Array:
        line = jnp.einsum("bry,byxc->brxc", y, features, precision=HIGHEST)
        return jnp.einsum("brx,brxc->brc", x, line, precision=HIGHEST)

    bytes_per_box = 4 * features.shape[2] * features.shape[3]
    return ops.map_chunks(pool, ops.chunk_size(y.shape[1], bytes_per_box, max_bytes), y, x)


def axis_weights(
    low: Float[Array, "*B"], high: Float[Array, "*B"], size: int, bins: int = BINS
) -> Float[Array, "*B S"]:
    """Weight of each of `size` cells in the mean over the samples from `low` to `high`.

    Both in cells of the map, cell i having its sample at i. There are ceil(length / bins) samples
    in each of `bins` bins. Samples before -1 or past `size` are 0, the others are clamped to the
    map. The samples between two cells are an arithmetic series, whose sum needs no list of them.
    """
    length = jnp.maximum(high - low, 1.0)[..., None]
    per_bin = 1.0 + sum((length > bins * k).astype(jnp.float32) for k in range(1, -(-size // bins)))
    count = bins * per_bin
    step = length / count
    first = low[..., None] + 0.5 * step
    edges = np.concatenate([[-1.0], np.arange(size)]).astype(np.float32)
    before = jnp.ceil((edges.reshape((1,) * low.ndim + (-1,)) - first) / step)  # samples before
    beyond = jnp.floor((size - first) / step) + 1.0  # a sample right at the map's end counts
    at = jnp.clip(jnp.concatenate([before, beyond], -1), 0.0, count)
    number = at[..., 1:] - at[..., :-1]
    middle = first + step * 0.5 * (at[..., 1:] + at[..., :-1] - 1.0)
    # intervals: before the first cell, between two cells, after the last
    between, cells = number[..., 1:-1], edges[1:-1].reshape((1,) * low.ndim + (-1,))
    right = between * (middle[..., 1:-1] - cells)
    left = between - right
    total = jnp.concatenate([number[..., :1], right], -1)
    total = total + jnp.concatenate([left, number[..., -1:]], -1)
    return total / count

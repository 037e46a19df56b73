"""RoIAlign with the arithmetic of mmcv's CUDA kernel at `aligned=True` (Groma spec 2.5 item 4)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from mg_jax import ops

MAX_BYTES = 256 * 2**20


def roi_align(
    features: Float[Array, "B Y X C"],
    boxes: Float[Array, "B R 4"],
    *,
    spatial_scale: float,
    output_size: int,
    sampling_ratio: int = 2,
    method: str = "auto",
    max_bytes: int = MAX_BYTES,
) -> Float[Array, "B R P P C"]:
    """Average-pooled bilinear samples of every box on a grid of `output_size` x `output_size` bins.

    `boxes` are (x1, y1, x2, y2) in the coordinates of the model's input (pixels, say) and
    `spatial_scale` maps them onto the feature map: start = x1 * scale - 0.5. A box with x2 < x1 has
    negative bins and is walked backwards; Groma's published weights rely on that. A sample with
    y < -1, y > Y, x < -1 or x > X is 0, any other one is clamped to the map.

    `method`: "separable" (one interpolation matrix per box and axis, two matmuls), "gather", or
    "auto": the gather on CPU, where it measured up to five times faster, separable elsewhere. Both
    give the same values and the same gradients to features and boxes. The separable form takes the
    boxes in chunks where its temporaries for one image would exceed `max_bytes`. Raises ValueError
    for another method. Computed in float32, at the matmul precision in force; the result has the
    dtype of `features`.
    """
    grid, (rows, columns, channels) = output_size, features.shape[1:]
    if method == "auto":
        method = "gather" if ops.platform() == "cpu" else "separable"
    if method not in ("gather", "separable"):
        raise ValueError(f"roi_align: method={method!r}; use 'auto', 'separable' or 'gather'")
    form = _gather if method == "gather" else _separable

    def pool(boxes: Array) -> Array:
        x1, y1, x2, y2 = jnp.moveaxis(boxes * spatial_scale, -1, 0)
        y = _axis_samples(y1, y2, rows, grid, sampling_ratio)
        x = _axis_samples(x1, x2, columns, grid, sampling_ratio)
        return form(features.astype(jnp.float32), y, x)

    chunk = boxes.shape[1]
    if method == "separable":
        chunk = ops.chunk_size(chunk, 4 * grid * columns * channels, max_bytes)
    return ops.map_chunks(pool, chunk, boxes.astype(jnp.float32)).astype(features.dtype)


def _axis_samples(low, high, size, grid, ratio):
    """Sample positions along one axis -> (cell int32, fraction, weight), each [B,R,P,ratio].

    A sample is `weight * ((1 - fraction) * f[cell] + fraction * f[cell + 1])`, where cell + 1 is
    clamped to the last cell; `weight` is 0 outside the map and 1/ratio inside.
    """
    steps = (np.arange(grid)[:, None] + (np.arange(ratio) + 0.5) / ratio) / grid
    steps = jnp.asarray(steps, jnp.float32).reshape(1, 1, grid, ratio)
    at = (low - 0.5)[..., None, None] + (high - low)[..., None, None] * steps
    inside = (at >= -1.0) & (at <= size)
    at = jnp.clip(jnp.where(inside, at, 0.0), 0.0, size - 1.0)
    cell = jnp.floor(jax.lax.stop_gradient(at))
    return cell.astype(jnp.int32), at - cell, inside.astype(jnp.float32) / ratio


def _separable(features, y, x):
    """[B,Y,X,C] pooled by one matrix [P,Y] and one [P,X] per box; the zeroing is separable too."""

    def matrix(samples, size):
        cell, fraction, weight = (s[..., None] for s in samples)
        at = jnp.arange(size, dtype=jnp.int32).reshape(1, 1, 1, 1, size)
        lower = jnp.where(at == cell, 1.0 - fraction, 0.0)
        upper = jnp.where(at == jnp.minimum(cell + 1, size - 1), fraction, 0.0)
        return ((lower + upper) * weight).sum(3)

    rows = jnp.einsum("brpy,byxc->brpxc", matrix(y, features.shape[1]), features)
    return jnp.einsum("brqx,brpxc->brpqc", matrix(x, features.shape[2]), rows)


def _gather(features, y, x):
    """[B,Y,X,C] read corner by corner: no temporary is larger than the result."""

    def corners(samples, size):
        cell, fraction, weight = samples
        index = jnp.stack([cell, jnp.minimum(cell + 1, size - 1)], -1)
        weight = jnp.stack([(1.0 - fraction) * weight, fraction * weight], -1)
        # [B,R,P,n,2] -> [2n,B,R,P]: a box's bin reads 2n cells per axis
        return (
            jnp.moveaxis(a.reshape(*cell.shape[:3], 2 * cell.shape[3]), -1, 0)
            for a in (index, weight)
        )

    (row, row_weight), (column, column_weight) = (
        corners(s, n) for s, n in zip((y, x), features.shape[1:3], strict=True)
    )
    batch, height, width, channels = features.shape
    flat = features.reshape(batch, height * width, channels)
    read = jax.vmap(lambda image, index: image.at[index].get(mode="promise_in_bounds"))

    @jax.checkpoint  # or the gradient to the boxes keeps every corner's values
    def add(total, corner):
        row, row_weight, column, column_weight = corner
        index = row[..., :, None] * width + column[..., None, :]
        weight = row_weight[..., :, None] * column_weight[..., None, :]
        return total + read(flat, index) * weight[..., None], None

    count = row.shape[0]
    pairs = [jnp.repeat(a, count, axis=0) for a in (row, row_weight)]
    pairs += [jnp.concatenate([a] * count) for a in (column, column_weight)]
    grid = row.shape[-1]
    total = jnp.zeros((batch, row.shape[2], grid, grid, channels), jnp.float32)
    return jax.lax.scan(add, total, tuple(pairs))[0]

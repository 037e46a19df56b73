"""Reading feature maps at points, and thinning points out (Ferret spec 4).

Everything is indexes and weights first: a map may be stored in pieces (tiles) that are never put
together, so whoever knows how turns cells into positions of `gather_weighted`.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Taps = tuple[jax.Array, jax.Array]  # cells [..., k] int32 of one axis, their weights [..., k]
FAR = 1e10  # squared distance before any point is chosen


def bilinear_taps(at: Float[Array, "*B"], size: Int[Array, "*B"] | int) -> Taps:
    """The two cells of an axis of `size` cells around position `at`, cell i lying at i.

    A share s of the axis lies at s * (size - 1) where the outermost cells are at its ends (PyTorch:
    align_corners=True). Cells outside have weight 0 (zero padding).
    """
    low = jnp.floor(at)
    cells = jnp.stack([low, low + 1], -1).astype(jnp.int32)
    weights = jnp.stack([1 - (at - low), at - low], -1)
    last = jnp.broadcast_to(size, at.shape)[..., None] - 1
    inside = (cells >= 0) & (cells <= last)
    return jnp.clip(cells, 0, last), jnp.where(inside, weights, 0)


def upsampled_taps(
    taps: Taps, size: Int[Array, "*B"] | int, source: int, rule: Literal["nearest", "bilinear"]
) -> Taps:
    """Taps of an axis of `size` cells as those of the `source` cells it is interpolated from.

    "nearest": cell i is cell floor(i * source / size); "bilinear": cells are areas, edges repeated
    (both as PyTorch's interpolate by size).
    """
    cells, weights = taps
    size = jnp.broadcast_to(size, cells.shape[:-1])[..., None]
    if rule == "nearest":
        return cells * source // size, weights
    at = jnp.maximum((cells + 0.5) * (source / size) - 0.5, 0)
    low = jnp.minimum(jnp.floor(at).astype(jnp.int32), source - 1)
    share = at - low
    both = jnp.stack([low, jnp.minimum(low + 1, source - 1)], -1)
    shares = jnp.stack([1 - share, share], -1) * weights[..., None]
    shape = (*cells.shape[:-1], -1)
    return both.reshape(shape), shares.reshape(shape)


def crossed(rows: Taps, columns: Taps) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(row, column, weight), each [..., k * m]: every pair of taps of the two axes."""
    (r, by_row), (c, by_column) = rows, columns
    w = by_row[..., :, None] * by_column[..., None, :]
    r, c, w = jnp.broadcast_arrays(r[..., :, None], c[..., None, :], w)
    shape = (*w.shape[:-2], -1)
    return r.reshape(shape), c.reshape(shape), w.reshape(shape)


def gather_weighted(
    values: Float[Array, "B n C"], index: Int[Array, "B P k"], weight: Float[Array, "B P k"]
) -> Float[Array, "B P C"]:
    """sum_k weight[b, p, k] * values[b, index[b, p, k]] in float32, row by row of the batch."""

    def one(rows, at, share):
        total = jnp.zeros((at.shape[0], rows.shape[1]), jnp.float32)
        for k in range(at.shape[1]):  # not at once: k times the memory
            total += share[:, k, None] * rows[at[:, k]].astype(jnp.float32)
        return total

    return jax.vmap(one)(values, index, weight)


def sample_map(
    features: Float[Array, "B Y X C"], at: Float[Array, "B P 2"]
) -> Float[Array, "B P C"]:
    """Bilinear values at shares (row, column) of a map whose outermost cells are at 0 and 1;
    zero beyond its border."""
    b, rows, columns, c = features.shape
    taps = (bilinear_taps(at[..., i] * (n - 1), n) for i, n in enumerate((rows, columns)))
    row, column, weight = crossed(*taps)
    return gather_weighted(features.reshape(b, -1, c), row * columns + column, weight)


def farthest_points(
    points: Float[Array, "B P 2"], count: int, start: Int[Array, " B"]
) -> Int[Array, "B count"]:
    """Indexes of `count` points of each set: `start`, then always the one farthest from all
    chosen. Of equally far ones the first; where none is left at a distance, the first point."""

    def one(points, start):
        def choose(i, state):
            chosen, distance, last = state
            distance = jnp.minimum(distance, jnp.square(points - points[last][None]).sum(-1))
            return chosen.at[i].set(last), distance, jnp.argmax(distance).astype(jnp.int32)

        chosen, distance = jnp.zeros(count, jnp.int32), jnp.full_like(points[:, 0], FAR)
        return jax.lax.fori_loop(0, count, choose, (chosen, distance, start.astype(jnp.int32)))[0]

    return jax.vmap(one)(points, start)


def nearest_points(
    points: Float[Array, "B P 2"], anchors: Float[Array, "B n 2"], count: int
) -> Int[Array, "B n count"]:
    """Indexes of the `count` points nearest to each anchor, nearest first; of equally near ones
    the first."""
    apart = anchors[:, :, None] - points[:, None]
    return jax.lax.top_k(-jnp.square(apart).sum(-1), count)[1].astype(jnp.int32)


def take_points(values: Float[Array, "B Q P C"], index: Int[Array, "B Q *n"]) -> jax.Array:
    """values[b, q, index[b, q]], never across regions: [B, Q, *n, C]."""
    return jax.vmap(jax.vmap(lambda v, i: v[i]))(values, index)

"""Sine embeddings of places: the proposer's (Groma spec 2.3), sin and cos by turns, and MAE's."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def sine(at: Float[Array, "*B A"], channels: int) -> Float[Array, "*B A*channels"]:
    """`channels` for each of A coordinates in turn, which are in [0, 1]."""
    lengths = jnp.asarray(_wavelengths(channels)).reshape(*[1] * at.ndim, channels)
    angle = at[..., None] * (2 * math.pi) / lengths
    return _interleaved(angle).reshape(*at.shape[:-1], at.shape[-1] * channels)


def sine_grid(rows: int, cols: int, width: int) -> Float[Array, "Y X D"]:
    """Of a grid: D/2 channels of the row, then D/2 of the column."""
    lengths = _wavelengths(width // 2)

    def axis(n):
        at = (np.arange(1, n + 1, dtype=np.float32) - 0.5) / np.float32(n + 1e-6) * (2 * np.pi)
        return _interleaved(jnp.asarray(at.astype(np.float32)[:, None] / lengths[None]))

    y = jnp.broadcast_to(axis(rows)[:, None], (rows, cols, width // 2))
    x = jnp.broadcast_to(axis(cols)[None], (rows, cols, width // 2))
    return jnp.concatenate([y, x], -1)


def waves(side: int, width: int) -> Float[np.ndarray, "side*side width"]:
    """Sines and cosines of each cell's row and column, row by row (MAE's 2-D positions)."""
    quarter = -(-width // 4)
    speed = 1 / 10000 ** (np.arange(quarter) / quarter)
    angle = np.arange(side)[:, None] * speed[None]
    line = np.concatenate([np.sin(angle), np.cos(angle)], -1)
    rows, columns = np.repeat(line, side, 0), np.tile(line, (side, 1))
    return np.concatenate([rows, columns], -1)[:, :width].astype(np.float32)


def _interleaved(angle: Array) -> Array:
    """sin of even channels and cos of odd ones, in their places."""
    pair = jnp.stack([jnp.sin(angle[..., 0::2]), jnp.cos(angle[..., 1::2])], -1)
    return pair.reshape(angle.shape)


def _wavelengths(channels: int, temperature: float = 10000.0) -> np.ndarray:
    exponent = 2 * (np.arange(channels) // 2) / channels
    return (temperature**exponent).astype(np.float32)

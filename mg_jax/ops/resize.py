"""Bilinear and bicubic resizing as two small interpolation matrices, one per axis.

The matrices are built in NumPy while tracing and have PyTorch's values, rounded like PyTorch's in
float32. No antialiasing.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

CUBIC_A = -0.75  # PyTorch's; 'Keys' cubic, as in jax.image, is -0.5


def bilinear_matrix(size: int, source: int) -> np.ndarray:
    """float32 [size, source]: linear interpolation with the outermost samples aligned.

    Output i lies at i * (source - 1) / (size - 1), so the first and the last sample coincide with
    those of the source (`align_corners=True`); a single output takes the first sample.
    """
    step = np.float32((source - 1) / (size - 1)) if size > 1 else np.float32(0.0)
    at = np.arange(size, dtype=np.float32) * step
    cell = np.minimum(np.floor(at).astype(np.int64), source - 1)
    fraction = np.clip(at - cell.astype(np.float32), np.float32(0.0), np.float32(1.0))
    matrix = np.zeros((size, source), np.float32)
    rows = np.arange(size)
    np.add.at(matrix, (rows, cell), np.float32(1.0) - fraction)
    np.add.at(matrix, (rows, np.minimum(cell + 1, source - 1)), fraction)
    return matrix


def linear_matrix(size: int, source: int) -> np.ndarray:
    """float32 [size, source]: linear interpolation, edges repeated, pixels as areas.

    Output i lies at (i + 0.5) * source / size - 0.5 (PyTorch's `align_corners=False`).
    """
    step = np.float32(source / size)
    at = step * (np.arange(size, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    at = np.maximum(at, np.float32(0.0))
    cell = np.minimum(at.astype(np.int64), source - 1)
    fraction = np.clip(at - cell.astype(np.float32), np.float32(0.0), np.float32(1.0))
    matrix = np.zeros((size, source), np.float32)
    rows = np.arange(size)
    np.add.at(matrix, (rows, cell), np.float32(1.0) - fraction)
    np.add.at(matrix, (rows, np.minimum(cell + 1, source - 1)), fraction)
    return matrix


def bicubic_matrix(size: int, source: int, scale: float | None = None) -> np.ndarray:
    """float32 [size, source]: cubic interpolation, a = -0.75, edges repeated, pixels as areas.

    Output i lies at (i + 0.5) / scale - 0.5. `scale` None is size / source (PyTorch's `size=`);
    another one is PyTorch's explicit `scale_factor`: DINOv2's stored 37 x 37 positions at 32 x 32
    patches use 32.1 / 37 in Groma's published weights (spec 2.1).
    """
    step = np.float32(source / size if scale is None else 1.0 / scale)
    at = step * (np.arange(size, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    cell = np.floor(at)
    t = (at - cell).astype(np.float32)

    def near(x):  # |x| <= 1
        return ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1

    def far(x):  # 1 < |x| < 2
        return ((CUBIC_A * x - 5 * CUBIC_A) * x + 8 * CUBIC_A) * x - 4 * CUBIC_A

    matrix = np.zeros((size, source), np.float32)
    weights = (far(t + 1), near(t), near(1 - t), far(2 - t))
    for offset, weight in enumerate(weights, start=-1):
        column = np.clip(cell.astype(np.int64) + offset, 0, source - 1)
        np.add.at(matrix, (np.arange(size), column), weight.astype(np.float32))
    return matrix


def resize_bilinear(
    x: Float[Array, "*B Y X C"], size: tuple[int, int]
) -> Float[Array, "*B Y2 X2 C"]:
    """Bilinear with aligned corners to `size` = (rows, columns); float32 inside, dtype kept."""
    return _resize(x, size, bilinear_matrix, ((), ()))


def resize_linear(x: Float[Array, "*B Y X C"], size: tuple[int, int]) -> Float[Array, "*B Y2 X2 C"]:
    """Bilinear with pixels as areas to `size` = (rows, columns); float32 inside, dtype kept."""
    return _resize(x, size, linear_matrix, ((), ()))


def resize_bicubic(
    x: Float[Array, "*B Y X C"],
    size: tuple[int, int],
    scale: tuple[float, float] | None = None,
) -> Float[Array, "*B Y2 X2 C"]:
    """Bicubic to `size` = (rows, columns); float32 inside, dtype kept.

    `scale` = (rows, columns) replaces size / source in the coordinates only, see `bicubic_matrix`.
    """
    return _resize(x, size, bicubic_matrix, [(s,) for s in scale or (None, None)])


def resize_positions(
    positions: Float[Array, "Y X D"], size: tuple[int, int], rule: str
) -> Float[Array, "Y2 X2 D"]:
    """A grid of position embeddings for another grid of patches, by the rule of its checkpoint.

    "scale_offset": scale (size + 0.1) / source, what DINOv2 and older transformers do and Groma's
    weights expect; "size": scale size / source; "size_antialias": the same with PyTorch's
    antialiased cubic, whose a is -0.5 (DINOv2 with registers). An equal grid is returned untouched
    by all.
    """
    rules = ("scale_offset", "size", "size_antialias")
    if rule not in rules:
        raise ValueError(f"resize_positions: rule={rule!r}; use one of {', '.join(rules)}")
    if tuple(size) == positions.shape[:2]:
        return positions
    if rule == "size":
        return resize_bicubic(positions, size)
    if rule == "size_antialias":
        shape = (*size, positions.shape[2])
        exact = jax.lax.Precision.HIGHEST
        out = jax.image.resize(positions.astype(jnp.float32), shape, "bicubic", precision=exact)
        return out.astype(positions.dtype)
    rows, columns = ((n + 0.1) / p for n, p in zip(size, positions.shape[:2], strict=True))
    return resize_bicubic(positions, size, (rows, columns))


def _resize(x, size, matrix: Callable[..., np.ndarray], arguments):
    out = x.astype(jnp.float32)
    patterns = ("oy,...yxc->...oxc", "ox,...yxc->...yoc")
    for pattern, n, axis, extra in zip(patterns, size, (-3, -2), arguments, strict=True):
        weights = matrix(n, x.shape[axis], *extra)
        if not np.array_equal(weights, np.eye(x.shape[axis], dtype=np.float32)):
            # the matrices are small; at a lower precision the map would be visibly rounded
            out = jnp.einsum(pattern, weights, out, precision=jax.lax.Precision.HIGHEST)
    return out.astype(x.dtype)

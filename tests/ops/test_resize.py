"""Resizing by interpolation matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mg_jax.ops import resize


def test_bilinear_keeps_the_corners_and_ramps():
    ramp = np.linspace(-1, 3, 5, dtype=np.float32)
    np.testing.assert_allclose(
        resize.bilinear_matrix(9, 5) @ ramp, np.linspace(-1, 3, 9), atol=1e-6
    )
    np.testing.assert_array_equal(resize.bilinear_matrix(5, 5), np.eye(5))
    np.testing.assert_array_equal(resize.bilinear_matrix(1, 4), [[1, 0, 0, 0]])
    np.testing.assert_array_equal(resize.bilinear_matrix(3, 1), np.ones((3, 1)))


def plain_cubic(row, size, scale):
    """One row, output by output: the cubic kernel with a = -0.75, edges repeated."""
    out = []
    for i in range(size):
        at = (i + 0.5) / scale - 0.5
        total = 0.0
        for k in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            d = abs(at - k)
            near = 1.25 * d**3 - 2.25 * d**2 + 1
            far = -0.75 * d**3 + 3.75 * d**2 - 6 * d + 3
            total += (near if d <= 1 else far) * row[min(max(k, 0), len(row) - 1)]
        out.append(total)
    return out


@pytest.mark.parametrize("size,source,scale", [
    (32, 37, None), (32, 37, 32.1 / 37), (16, 10, 16.1 / 10), (7, 7, 7.1 / 7), (5, 2, None),
])  # fmt: skip
def test_bicubic_equals_plain_loops(size, source, scale, rng):
    row = rng.normal(size=source)
    got = resize.bicubic_matrix(size, source, scale) @ row
    np.testing.assert_allclose(got, plain_cubic(row, size, scale or size / source), atol=2e-5)


@pytest.mark.torch
def test_resizing_equals_torch(rng):
    torch = pytest.importorskip("torch")
    x = rng.normal(size=(2, 11, 7, 3)).astype(np.float32)
    channels_first = torch.tensor(x.transpose(0, 3, 1, 2))

    def reference(**kwargs):
        out = torch.nn.functional.interpolate(channels_first, **kwargs)
        return out.numpy().transpose(0, 2, 3, 1)

    for size in ((22, 28), (5, 3), (1, 7), (11, 7)):
        want = reference(size=size, mode="bilinear", align_corners=True)
        np.testing.assert_allclose(resize.resize_bilinear(x, size), want, atol=2e-6)
        want = reference(size=size, mode="bicubic", align_corners=False)
        np.testing.assert_allclose(resize.resize_bicubic(x, size), want, atol=1e-5)
    scale = (9.1 / 11, 6.1 / 7)
    want = reference(scale_factor=scale, mode="bicubic", align_corners=False)
    np.testing.assert_allclose(resize.resize_bicubic(x, (9, 6), scale), want, atol=1e-5)


def test_position_rules(rng):
    grid = rng.normal(size=(5, 5, 2)).astype(np.float32)
    for rule in ("scale_offset", "size", "size_antialias"):
        assert resize.resize_positions(grid, (5, 5), rule) is grid
    old = resize.resize_positions(grid, (4, 4), "scale_offset")
    rows = resize.bicubic_matrix(4, 5, 4.1 / 5)
    np.testing.assert_allclose(old, np.einsum("ay,bx,yxc->abc", rows, rows, grid), atol=1e-5)
    new = resize.resize_positions(grid, (4, 4), "size")
    assert 0.01 < np.abs(np.asarray(old) - np.asarray(new)).max() < 1
    with pytest.raises(ValueError, match="rule='offset'"):
        resize.resize_positions(grid, (4, 4), "offset")


def test_dtype_kept_and_differentiable():
    x = jnp.ones((2, 4, 4, 3), jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        out = resize.resize_bilinear(x, (8, 6))
    assert out.dtype == jnp.bfloat16 and out.shape == (2, 8, 6, 3)
    gradient = jax.grad(lambda x: resize.resize_bicubic(x, (8, 6)).sum())(x.astype(jnp.float32))
    np.testing.assert_allclose(gradient.sum(), out.size, rtol=1e-5)


def test_linear_equals_jax_image(rng):
    x = rng.normal(size=(2, 12, 8, 3)).astype(np.float32)
    for size in ((24, 24), (5, 3), (1, 1), (12, 8), (36, 8)):
        want = jax.image.resize(x, (2, *size, 3), "linear", antialias=False)
        np.testing.assert_allclose(resize.resize_linear(x, size), want, atol=1e-6)
    assert (resize.linear_matrix(3, 1) == 1).all()

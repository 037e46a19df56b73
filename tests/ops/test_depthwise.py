"""Depthwise convolution against plain loops, XLA's grouped convolution and PyTorch; on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mg_jax import sharding
from mg_jax.ops.depthwise import depthwise


def case(rng, shape=(2, 5, 6, 4), taps=(3, 5)):
    x = rng.normal(size=shape).astype(np.float32)
    return x, rng.normal(size=(*taps, shape[-1])).astype(np.float32)


def grouped(x, kernel):
    around = [(n // 2, n // 2) for n in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(
        x, kernel[:, :, None], (1, 1), around, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )  # fmt: skip


def test_equals_plain_loops(rng):
    x, kernel = case(rng)
    expected = np.zeros(x.shape)
    for b, i, j, c in np.ndindex(x.shape):
        for u, v in np.ndindex(kernel.shape[:2]):
            row, col = i + u - 1, j + v - 2
            if 0 <= row < x.shape[1] and 0 <= col < x.shape[2]:
                expected[b, i, j, c] += x[b, row, col, c] * kernel[u, v, c]
    np.testing.assert_allclose(depthwise(x, kernel), expected, atol=1e-5)


@pytest.mark.torch
def test_equals_pytorch(rng):
    torch = pytest.importorskip("torch")
    x, kernel = case(rng, (2, 9, 4, 6), (7, 7))
    expected = torch.nn.functional.conv2d(
        torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(kernel.transpose(2, 0, 1)[:, None]),
        padding=3, groups=6,
    )  # fmt: skip
    got = depthwise(x, kernel)
    np.testing.assert_allclose(got, expected.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def slopes(function, x, kernel):
    def loss(x, kernel):
        return jnp.sum(jnp.sin(function(x, kernel)))

    return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1)))(x, kernel))


def test_gradients_equal_those_of_the_grouped_convolution(rng):
    x, kernel = case(rng)
    for a, b in zip(slopes(depthwise, x, kernel), slopes(grouped, x, kernel), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_mesh_changes_nothing(rng):
    x, kernel = case(rng, (8, 6, 6, 16), (7, 7))
    plain = slopes(depthwise, x, kernel)
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    names = (("batch", None, None, None), (None, None, "conv_in"))
    split = functools.partial(sharding.spec, mesh=mesh, rules="fsdp_tensor")
    placed = [
        jax.device_put(a, jax.NamedSharding(mesh, split(n)))
        for a, n in zip((x, kernel), names, strict=True)
    ]
    assert placed[1].sharding.spec == jax.P(None, None, "fsdp")
    with sharding.use(mesh, "fsdp_tensor"):
        meshed = slopes(depthwise, *placed)
    for a, b in zip(meshed, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_half_precision_map_is_summed_in_float32(rng):
    x, kernel = case(rng, (1, 9, 9, 3), (7, 7))
    x = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)
    got = depthwise(jnp.asarray(x, jnp.bfloat16), kernel)
    assert got.dtype == jnp.bfloat16
    exact = np.asarray(jnp.asarray(depthwise(x, kernel), jnp.bfloat16), np.float32)
    np.testing.assert_array_equal(np.asarray(got, np.float32), exact)


@pytest.mark.parametrize(("taps", "channels"), [((2, 3), 4), ((3, 4), 4), ((3, 3), 5)])
def test_what_does_not_fit_is_refused(rng, taps, channels):
    x, _ = case(rng)
    with pytest.raises(ValueError, match="odd"):
        depthwise(x, np.zeros((*taps, channels), np.float32))

"""Deformable attention's sampling against plain loops, PyTorch's grid_sample and its other form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mg_jax.ops.deform_attn import deform_attn

SHAPES = ((5, 7), (3, 2))
METHODS = ("gather", "matmul")


def plain_deform_attn(value, shapes, locations, weights):
    """Corner by corner, in float64."""
    batch, _, heads, head_dim = value.shape
    out = np.zeros((batch, locations.shape[1], heads, head_dim))
    starts = np.cumsum([0] + [y * x for y, x in shapes])
    for b, q, n, level, z in np.ndindex(locations.shape[:5]):
        rows, columns = shapes[level]
        x, y = locations[b, q, n, level, z].astype(np.float64) * (columns, rows) - 0.5
        left, top = int(np.floor(x)), int(np.floor(y))
        for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            if 0 <= row < rows and 0 <= column < columns:
                share = (1 - abs(y - row)) * (1 - abs(x - column))
                cell = value[b, starts[level] + row * columns + column, n]
                out[b, q, n] += weights[b, q, n, level, z] * share * cell
    return out


def make_case(rng, batch=2, queries=6, heads=3, points=2, head_dim=4):
    cells = sum(y * x for y, x in SHAPES)
    value = rng.normal(size=(batch, cells, heads, head_dim))
    locations = rng.uniform(-0.3, 1.3, (batch, queries, heads, len(SHAPES), points, 2))
    locations[0, 0] = [-1e4, 3e9]  # finite, but far away
    weights = rng.uniform(size=locations.shape[:-1])
    return tuple(a.astype(np.float32) for a in (value, locations, weights))


def run(value, locations, weights, **kwargs):
    return deform_attn(value, SHAPES, locations, weights, **kwargs)


def slopes(loss):
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


@pytest.mark.parametrize("method", METHODS)
def test_equals_plain_loops(rng, method):
    value, locations, weights = make_case(rng)
    got = run(value, locations, weights, method=method)
    want = plain_deform_attn(value, SHAPES, locations, weights)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("method", METHODS)
def test_values_and_gradients_equal_grid_sample(rng, method):
    torch = pytest.importorskip("torch")
    case = make_case(rng)
    case[1][0, 0] = 0.4
    upstream = rng.normal(size=(2, 6, 3, 4)).astype(np.float32)
    value, locations, weights = tensors = [torch.tensor(a, requires_grad=True) for a in case]
    out, start = 0, 0
    for level, (rows, columns) in enumerate(SHAPES):
        cells = value[:, start : start + rows * columns].permute(0, 2, 3, 1)
        start += rows * columns
        sampled = torch.nn.functional.grid_sample(
            cells.reshape(6, 4, rows, columns),
            (2 * locations[:, :, :, level] - 1).permute(0, 2, 1, 3, 4).reshape(6, 6, 2, 2),
            align_corners=False,
        )
        share = weights[:, :, :, level].permute(0, 2, 1, 3).reshape(6, 1, 6, 2)
        out = out + (sampled * share).sum(-1)
    out = out.reshape(2, 3, 4, 6).permute(0, 3, 1, 2)
    (out * torch.tensor(upstream)).sum().backward()
    np.testing.assert_allclose(run(*case, method=method), out.detach().numpy(), atol=1e-5)
    gradients = slopes(lambda *args: (run(*args, method=method) * upstream).sum())(
        *(jnp.asarray(a) for a in case)
    )
    for got, tensor in zip(gradients, tensors, strict=True):
        np.testing.assert_allclose(got, tensor.grad.numpy(), atol=3e-5)


def test_forms_and_chunks_have_equal_values_and_gradients(rng):
    case = [jnp.asarray(a) for a in make_case(rng)]
    # on cell centres the bilinear read has two slopes; both forms must take the same one
    case[1] = case[1].at[1, 0, :, 0].set(jnp.array([2.5 / 7, 1.5 / 5]))
    upstream = rng.normal(size=(2, 6, 3, 4)).astype(np.float32)
    ways = [{"method": "gather"}, {"method": "matmul"}, {"method": "auto"}]
    ways += [{"method": "matmul", "max_bytes": 8 * 3 * 41 * rows} for rows in (0, 1, 4)]
    results = []
    for way in ways:
        loss = lambda *args, way=way: (run(*args, **way) * upstream).sum()  # noqa: E731
        results.append((run(*case, **way), *slopes(loss)(*case)))
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_equal_finite_differences(rng, method):
    case = make_case(rng)
    upstream = rng.normal(size=(2, 6, 3, 4))
    weigh = upstream.astype(np.float32)
    gradients = slopes(lambda *args: (run(*args, method=method) * weigh).sum())(
        *(jnp.asarray(a) for a in case)
    )
    for argument, gradient in enumerate(gradients):
        for _ in range(3):
            where = (1, *(int(rng.integers(n)) for n in gradient.shape[1:]))
            values = []
            for step in (-1e-5, 1e-5):
                moved = [a.astype(np.float64) for a in case]
                moved[argument][where] += step
                out = plain_deform_attn(moved[0], SHAPES, moved[1], moved[2])
                values.append((out * upstream).sum())
            slope = (values[1] - values[0]) / 2e-5
            np.testing.assert_allclose(gradient[where], slope, atol=2e-4, rtol=1e-3)


def test_budget_bounds_the_temporaries(rng):
    case = make_case(rng, queries=64)
    loss = lambda *args, **kw: run(*args, method="matmul", **kw).sum()  # noqa: E731
    peak = [
        slopes(partial(loss, max_bytes=most))
        .lower(*case).compile().memory_analysis().temp_size_in_bytes
        for most in (2**28, 8 * 3 * 41 * 8)
    ]  # fmt: skip
    assert peak[1] < 0.5 * peak[0]


@pytest.mark.parametrize("method", METHODS)
def test_sharded_batch_equals_unsharded_without_collectives(method, rng):
    case = make_case(rng, batch=8)
    fn = jax.jit(partial(run, method=method))
    want = fn(*case)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    args = [jax.device_put(a, NamedSharding(mesh, PartitionSpec("data"))) for a in case]
    text = fn.lower(*args).compile().as_text()
    assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all"))
    np.testing.assert_allclose(fn(*args), want, atol=1e-6)


def test_dtype_and_wrong_arguments(rng):
    value, locations, weights = (jnp.asarray(a) for a in make_case(rng))
    with jax.numpy_dtype_promotion("strict"):
        for method in METHODS:
            out = run(value.astype(jnp.bfloat16), locations, weights, method=method)
            assert out.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="method='hat'"):
        run(value, locations, weights, method="hat")
    with pytest.raises(ValueError, match="value has 40 cells"):
        run(value[:, 1:], locations, weights)

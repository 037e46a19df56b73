"""Box means: a literal RoIAlign in NumPy, torchvision, memory, gradients, a mesh."""

import math

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mg_jax import sharding
from mg_jax.ops.box_mean import axis_weights, box_mean

EDGES = np.float32([
    [0, 0, 768, 768], [0, 0, 0, 0], [768, 100, 768, 300], [767, 700, 768, 768], [1, 2, 3, 3],
    [57, 13, 281, 237], [57, 13, 282, 238], [96, 64, 500, 700], [0, 0, 448, 672],
])  # fmt: skip


def enlarged(x, side):
    """x [Y,X,C] to side x side, half-pixel bilinear, one output at a time."""
    at = np.clip((np.arange(side) + 0.5) * x.shape[0] / side - 0.5, 0, x.shape[0] - 1)
    cell = np.minimum(at.astype(int), x.shape[0] - 1)
    after, f = np.minimum(cell + 1, x.shape[0] - 1), (at - cell)[:, None, None]
    rows = x[cell] * (1 - f) + x[after] * f
    f = f.swapaxes(0, 1)
    return rows[:, cell] * (1 - f) + rows[:, after] * f


def literal(x, box, scale, bins):
    """Mean over bins x bins of torchvision's RoIAlign (aligned=False, sampling_ratio=-1)."""
    x1, y1, x2, y2 = np.float32(box) * np.float32(scale)
    size = x.shape[0]

    def samples(low, high):
        length = max(high - low, np.float32(1))
        n = math.ceil(length / bins)
        return low + (np.arange(bins * n) + 0.5) * (length / (bins * n))

    def read(lines, at):
        """Values at positions of the first axis; beyond the map nothing is read."""
        inside = (at >= -1) & (at <= size)
        at = np.clip(at, 0, size - 1)
        cell = np.minimum(at.astype(int), size - 1)
        f = (at - cell).reshape(-1, *(1,) * (lines.ndim - 1))
        values = lines[cell] * (1 - f) + lines[np.minimum(cell + 1, size - 1)] * f
        return values * inside.reshape(f.shape)

    lines = read(x.astype(np.float64), samples(y1, y2)).mean(0)
    return read(lines, samples(x1, x2)).mean(0)


def drawn(rng, sides, channels, boxes=20, canvas=768, rows=2):
    maps = [
        rng.normal(size=(rows, s, s, c)).astype(np.float32)
        for s, c in zip(sides, channels, strict=True)
    ]
    corners = np.sort(rng.integers(0, canvas + 1, (rows, boxes, 2, 2)), axis=2)
    boxes = corners.reshape(rows, boxes, 4).astype(np.float32)
    edges = np.broadcast_to(EDGES * canvas / 768, (rows, *EDGES.shape)).astype(np.float32)
    return maps, np.concatenate([edges, boxes], 1)


@pytest.mark.parametrize(("sides", "bins"), [((24, 12, 6, 3), 7), ((192, 24), 56), ((8, 1), 56)])
def test_equals_a_literal_roi_align_of_the_enlarged_maps(rng, sides, bins):
    maps, boxes = drawn(rng, sides, range(2, 2 + len(sides)))
    got = jax.jit(lambda m, b: box_mean(m, b, 768, bins=bins))(maps, boxes)
    for row in range(2):
        whole = np.concatenate([enlarged(m[row], sides[0]) for m in maps], -1)
        want = [literal(whole, b, sides[0] / 768, bins) for b in boxes[row]]
        np.testing.assert_allclose(got[row], want, atol=1e-5)
    assert np.any(got[:, 1])  # no box: the first corner
    assert not np.any(got[:, 2])  # an edge on the map's end


def test_a_box_that_is_an_exact_multiple_of_the_bins_gets_no_sample_more():
    """56 cells take one sample a bin, 56.25 take two; visible in how a single cell is met."""
    high = jnp.asarray([56.0, 56.25, 112.0, 112.25, 192.0])
    weights = np.asarray(axis_weights(jnp.zeros(5), high, 192))
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    for row, samples in enumerate((56, 112, 112, 168, 224)):
        first = float(high[row]) / samples * (np.arange(samples) + 0.5)
        want = np.maximum(1 - np.abs(first[:, None] - np.arange(192)[None]), 0).mean(0)
        np.testing.assert_allclose(weights[row, :190], want[:190], atol=1e-6)


@pytest.mark.torch
def test_equals_torchvision(rng):
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    (fine, coarse), boxes = drawn(rng, (192, 24), (3, 2), boxes=40, rows=1)
    joined = [torch.tensor(m.transpose(0, 3, 1, 2)) for m in (fine, coarse)]
    joined[1] = torch.nn.functional.interpolate(joined[1], (192, 192), mode="bilinear")
    want = ops.roi_align(torch.cat(joined, 1), [torch.tensor(boxes[0])], 56, 0.25)
    got = box_mean((fine, coarse), boxes, 768)[0]
    np.testing.assert_allclose(got, want.mean((2, 3)).numpy(), atol=1e-5)


def test_chunks_dtype_and_gradients(rng):
    maps, boxes = drawn(rng, (24, 6), (3, 2))

    def total(maps, boxes, **kwargs):
        return jnp.square(box_mean(maps, boxes, 768, bins=7, **kwargs)).sum()

    grads = jax.grad(total, argnums=(0, 1))
    whole, chunked = grads(maps, boxes), grads(maps, boxes, max_bytes=3000)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, chunked)
    assert all(np.any(g) for g in whole[0]) and not np.any(whole[1])
    step = 1e-2 * np.sign(whole[0][1])
    moved = total((maps[0], maps[1] + step), boxes) - total((maps[0], maps[1] - step), boxes)
    np.testing.assert_allclose(moved, 2 * (step * whole[0][1]).sum(), rtol=1e-3)
    with jax.numpy_dtype_promotion("strict"):
        out = box_mean([jnp.ones((1, 6, 6, 2), jnp.bfloat16)], boxes[:1], 768)
    assert out.dtype == jnp.float32
    with pytest.raises(ValueError, match="square"):
        box_mean([jnp.ones((1, 6, 4, 2))], boxes[:1], 768)


def test_the_enlarged_map_is_never_built():
    """At the published sizes: 106 million numbers would be the joined map."""
    sizes = ((192, 192), (96, 384), (48, 768), (24, 1536))
    maps = [jax.ShapeDtypeStruct((1, s, s, c), jnp.float32) for s, c in sizes]
    boxes = jax.ShapeDtypeStruct((1, 256, 4), jnp.float32)
    largest = 0

    def walk(jaxpr):
        nonlocal largest
        for equation in jaxpr.eqns:
            largest = max([largest, *(math.prod(v.aval.shape) for v in equation.outvars)])
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                walk(inner)

    walk(jax.make_jaxpr(lambda m, b: box_mean(m, b, 768))(maps, boxes).jaxpr)
    assert 1e6 < largest < 1e7


def test_a_mesh_splits_the_batch_without_talking(rng):
    maps, boxes = drawn(rng, (24, 6), (3, 2), rows=8)
    want = box_mean(maps, boxes, 768, bins=7)
    mesh = sharding.make_mesh(8, 1, 1)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    args = jax.device_put((maps, boxes), rows)
    with sharding.use(mesh, "fsdp"):
        compiled = jax.jit(lambda m, b: box_mean(m, b, 768, bins=7)).lower(*args).compile()
    text = compiled.as_text()
    assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all"))
    np.testing.assert_allclose(compiled(*args), want, atol=1e-6)

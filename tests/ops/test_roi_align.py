"""RoIAlign against plain loops, recordings of the published kernel, and its other form."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mg_jax.ops.roi_align import roi_align

GOLDEN = Path(__file__).parents[1] / "golden" / "ops.npz"
METHODS = ("gather", "separable")
SCALE, GRID = 0.37, 3


def plain_roi_align(features, boxes, scale, grid, ratio):
    """[B,Y,X,C], [B,R,4] -> [B,R,P,P,C]; sample by sample, in float64."""
    height, width, channels = features.shape[1:]
    out = np.zeros((*boxes.shape[:2], grid, grid, channels))
    for b, r, p, q in np.ndindex(out.shape[:4]):
        x1, y1, x2, y2 = boxes[b, r].astype(np.float64) * scale - 0.5
        bin_height, bin_width = (y2 - y1) / grid, (x2 - x1) / grid
        for i, j in np.ndindex(ratio, ratio):
            y = y1 + p * bin_height + (i + 0.5) * bin_height / ratio
            x = x1 + q * bin_width + (j + 0.5) * bin_width / ratio
            if y < -1 or y > height or x < -1 or x > width:
                continue
            y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            dy, dx = y - top, x - left
            out[b, r, p, q] += (
                (1 - dy) * (1 - dx) * features[b, top, left]
                + (1 - dy) * dx * features[b, top, right]
                + dy * (1 - dx) * features[b, bottom, left]
                + dy * dx * features[b, bottom, right]
            )
    return out / ratio**2


@pytest.fixture
def case(rng):
    """Feature maps, and boxes in input coordinates: ordered, reversed, empty, far outside."""
    features = rng.normal(size=(2, 7, 9, 3))
    boxes = rng.uniform(-3, 27, size=(2, 9, 4))
    boxes[:, 0] = [2, 2, 20, 15]
    boxes[:, 1] = [20, 15, 2, 2]
    boxes[:, 2] = [5, 5, 5, 5]
    boxes[:, 3] = [-90, -90, -50, -50]
    boxes[:, 4] = [-40, -40, 70, 70]
    boxes[:, 5] = [300, 4, 10, 9]
    return features.astype(np.float32), boxes.astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_equals_plain_loops(case, method, ratio):
    got = roi_align(
        *case, spatial_scale=SCALE, output_size=GRID, sampling_ratio=ratio, method=method
    )
    want = plain_roi_align(*case, SCALE, GRID, ratio)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert not np.asarray(got)[:, 3].any()


def check_recorded(recorded, level, method):
    """Features are white noise, hence 5e-5: a sample's place is rounded to 1e-5 of a cell."""
    features = np.moveaxis(recorded[f"feat{level}"], 1, -1)
    rois, images = recorded["rois"], recorded["rois"][:, 0].astype(int)
    boxes = np.broadcast_to(rois[:, 1:], (2, len(rois), 4))
    scale = float(recorded[f"scale{level}"])
    got = roi_align(features, boxes, spatial_scale=scale, output_size=14, method=method)
    got = np.moveaxis(np.asarray(got)[images, np.arange(len(rois))], -1, 1)
    np.testing.assert_allclose(got, recorded[f"roi_out{level}"], atol=5e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", [1, 2])
def test_equals_recording(level, method):
    check_recorded(np.load(GOLDEN), level, method)


@pytest.mark.shared
@pytest.mark.parametrize("method", METHODS)
def test_equals_full_recording(shared, method):
    recorded = np.load(shared / "golden" / "groma" / "ops" / "ops.npz")
    for level in range(3):
        check_recorded(recorded, level, method)


def test_forms_have_equal_values_and_gradients(case, rng):
    features, boxes = (jnp.asarray(a) for a in case)
    # samples exactly on cell centres, where a bilinear read has two slopes
    boxes = boxes.at[:, 6].set(jnp.array([0.5, 0.5, 6.5, 6.5]) / 0.5)
    weights = rng.normal(size=(2, 9, GRID, GRID, 3)).astype(np.float32)

    def loss(features, boxes, method, max_bytes=2**28):
        out = roi_align(
            features, boxes, spatial_scale=0.5, output_size=GRID, method=method, max_bytes=max_bytes
        )
        return (out * weights).sum(), out

    ways = [partial(loss, method=m) for m in METHODS]
    ways.append(partial(loss, method="separable", max_bytes=1000))
    results = [
        jax.jit(jax.value_and_grad(way, (0, 1), has_aux=True))(features, boxes) for way in ways
    ]
    (_, want), want_gradients = results[0]
    for (_, got), gradients in results[1:]:
        np.testing.assert_allclose(got, want, atol=1e-6)
        for a, b in zip(gradients, want_gradients, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
            assert np.abs(a).max() > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_gradients_equal_finite_differences(case, method, rng):
    features, boxes = case
    weights = rng.normal(size=(2, 9, GRID, GRID, 3))

    def loss(features, boxes):
        out = roi_align(features, boxes, spatial_scale=SCALE, output_size=GRID, method=method)
        return (out * weights.astype(np.float32)).sum()

    gradients = jax.jit(jax.grad(loss, (0, 1)))(jnp.asarray(features), jnp.asarray(boxes))
    for argument, gradient in enumerate(gradients):
        for _ in range(4):
            where = tuple(int(rng.integers(n)) for n in gradient.shape)
            if argument:  # an ordinary box
                where = (where[0], 0, where[2])
            values = []
            for step in (-1e-4, 1e-4):
                moved = [a.astype(np.float64) for a in case]
                moved[argument][where] += step
                values.append((plain_roi_align(*moved, SCALE, GRID, 2) * weights).sum())
            slope = (values[1] - values[0]) / 2e-4
            np.testing.assert_allclose(gradient[where], slope, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_sharded_batch_equals_unsharded_without_collectives(method, rng):
    features = rng.normal(size=(8, 6, 6, 4)).astype(np.float32)
    boxes = rng.uniform(0, 6, (8, 5, 4)).astype(np.float32)
    fn = jax.jit(partial(roi_align, spatial_scale=1.0, output_size=2, method=method))
    want = fn(features, boxes)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    args = [jax.device_put(a, rows) for a in (features, boxes)]
    text = fn.lower(*args).compile().as_text()
    assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all"))
    np.testing.assert_allclose(fn(*args), want, atol=1e-6)


def test_dtype_and_method():
    features, boxes = jnp.ones((1, 4, 4, 2), jnp.bfloat16), jnp.array([[[0.0, 0.0, 4.0, 4.0]]])
    with jax.numpy_dtype_promotion("strict"):
        for method in ("auto", *METHODS):
            out = roi_align(features, boxes, spatial_scale=1.0, output_size=2, method=method)
            assert out.dtype == jnp.bfloat16 and out.shape == (1, 1, 2, 2, 2)
            np.testing.assert_array_equal(out.astype(jnp.float32), 1.0)
    with pytest.raises(ValueError, match="method='einsum'"):
        roi_align(features, boxes, spatial_scale=1.0, output_size=2, method="einsum")

"""Choice of platform and chunks, shared by the operators."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from mg_jax import ops, sharding
from mg_jax.ops.deform_attn import deform_attn
from mg_jax.ops.roi_align import roi_align


def mesh_of(platform):
    device = AbstractDevice(device_kind="any", num_cores=None, platform=platform)
    return AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)


@pytest.mark.parametrize("platform,want", [("tpu", "tpu"), ("cuda", "gpu"), ("cpu", "cpu")])
def test_the_mesh_in_force_names_the_platform(platform, want):
    assert ops.platform() == jax.default_backend()
    with jax.sharding.use_abstract_mesh(mesh_of(platform)):
        assert ops.platform() == want
    devices = np.array([SimpleNamespace(platform=platform)])
    with sharding.use(SimpleNamespace(devices=devices), "replicated"):
        assert ops.platform() == want


@pytest.mark.parametrize("platform,gathers", [("tpu", False), ("cuda", False), ("cpu", True)])
def test_auto_is_gather_free_on_accelerators(platform, gathers):
    def both(features, boxes, locations, weights):
        a = roi_align(features, boxes, spatial_scale=1.0, output_size=2)
        value = features.reshape(1, 16, 1, 3)
        return a, deform_attn(value, ((4, 4),), locations, weights)

    spots = (1, 5, 1, 1, 2)
    shapes = ((1, 4, 4, 3), (1, 5, 4), (*spots, 2), spots)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    with jax.sharding.use_abstract_mesh(mesh_of(platform)):
        text = str(jax.make_jaxpr(both)(*arguments))
    assert ("gather" in text) == gathers


def test_chunks_are_equal_and_within_the_budget():
    assert ops.chunk_size(100, 10, 10_000) == 100
    assert ops.chunk_size(100, 10, 999) == 50
    assert ops.chunk_size(100, 10, 400) == 34
    assert ops.chunk_size(100, 10, 1) == 1
    assert ops.chunk_size(0, 10, 1) == 1


@pytest.mark.parametrize("chunk", [1, 3, 7, 9])
def test_chunked_map_equals_whole(chunk, rng):
    x, y = (jnp.asarray(rng.normal(size=(2, 7, 3)), jnp.float32) for _ in range(2))
    fn = lambda x, y: jnp.sin(x) * y.sum(-1, keepdims=True)  # noqa: E731
    np.testing.assert_allclose(ops.map_chunks(fn, chunk, x, y), fn(x, y), atol=1e-6)


def test_no_rows_at_all():
    features = jnp.ones((2, 4, 4, 3))
    for method in ("gather", "separable"):
        out = roi_align(
            features, jnp.ones((2, 0, 4)), spatial_scale=1.0, output_size=2, method=method
        )
        assert out.shape == (2, 0, 2, 2, 3)
    spots = jnp.ones((2, 0, 1, 1, 2, 2))
    for method in ("gather", "matmul"):
        out = deform_attn(
            features.reshape(2, 16, 1, 3), ((4, 4),), spots, spots[..., 0], method=method
        )
        assert out.shape == (2, 0, 1, 3)

"""The spatial-aware sampler against its literal form in NumPy."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mg_jax import sharding
from mg_jax.models import sampler
from mg_jax.models.sampler import GeoRegionSampler, SamplerConfig, group
from tests import ferret_reference as reference

CFG = SamplerConfig(points=20, anchors=(8, 3), neighbours=(5, 4))
C, D = 6, 7
KEYS = jax.random.split(jax.random.key(0), 3)


@functools.cache
def module(pooler="max"):
    return GeoRegionSampler(SamplerConfig(**{**vars(CFG), "pooler": pooler}), C, D)


@pytest.fixture(scope="module")
def drawn():
    """(parameters without a constant leaf, features [2,3,P,C], points [2,3,P,2])."""
    draw = np.random.default_rng(0)
    features = draw.normal(size=(2, 3, 20, C)).astype(np.float32)
    points = draw.uniform(size=(2, 3, 20, 2)).astype(np.float32)
    shapes = sharding.abstract_params(module().init, jax.random.key(0), features, points)
    params = jax.tree.map(
        lambda x: draw.normal(scale=x.shape[0] ** -0.5, size=x.shape).astype(np.float32),
        sharding.unbox(shapes),
    )
    return params, features, points


@functools.cache
def compiled(pooler="max"):
    return jax.jit(lambda p, f, x, fed: module(pooler).apply({"params": p}, f, x, fed))


def indexes(aux, b, q):
    return [tuple(np.asarray(aux[f"stage{i}"][n][b, q]) for n in ("fps", "knn")) for i in range(2)]


@pytest.mark.parametrize("pooler", ["max", "mean"])
def test_every_stage_is_the_literal_one(drawn, pooler):
    params, features, points = drawn
    got, aux = compiled(pooler)(params, features, points, {})
    for b, q in np.ndindex(2, 3):
        found = indexes(aux, b, q)
        np.testing.assert_array_equal(found[0][0], reference.farthest(points[b, q], 8, 0))
        want, stages = reference.sample_region(params, features[b, q], points[b, q], found, pooler)
        np.testing.assert_allclose(got[b, q], want, atol=2e-5)
        for i, (places, pooled) in enumerate(stages):
            np.testing.assert_allclose(aux[f"stage{i}"]["points"][b, q], places, atol=1e-6)
            np.testing.assert_allclose(aux[f"stage{i}"]["pooled"][b, q], pooled, atol=2e-5)


def test_recorded_indexes_are_used(drawn):
    params, features, points = drawn
    draw = np.random.default_rng(1)
    fed = {}
    for i, (size, n, k) in enumerate(((20, 8, 5), (8, 3, 4))):
        fed[f"fps_{i}"] = draw.integers(0, size, size=(2, 3, n)).astype(np.int32)
        fed[f"knn_{i}"] = draw.integers(0, size, size=(2, 3, n, k)).astype(np.int32)
    got, aux = compiled()(params, features, points, fed)
    want, _ = reference.sample_region(
        params, features[1, 2], points[1, 2], indexes(aux, 1, 2), "max"
    )
    np.testing.assert_array_equal(aux["stage1"]["knn"], fed["knn_1"])
    np.testing.assert_allclose(got[1, 2], want, atol=2e-5)


def test_a_key_draws_the_first_anchors_and_nothing_else_does(drawn):
    params, features, points = drawn

    @jax.jit
    def run(key):
        return module().apply({"params": params}, features, points, rngs={"points": key})

    plain, aux = compiled()(params, features, points, {})
    first, drawn_aux = run(KEYS[0])
    np.testing.assert_array_equal(first, run(KEYS[0])[0])
    assert (aux["stage0"]["fps"][..., 0] == 0).all() and (aux["stage1"]["fps"][..., 0] == 0).all()
    assert len(np.unique(drawn_aux["stage0"]["fps"][..., 0])) > 1
    assert np.abs(first - plain).max() > 1e-3
    assert np.abs(first - run(KEYS[1])[0]).max() > 1e-3


def test_many_regions_are_described_in_turns(drawn, monkeypatch):
    """Neighbours' features of all regions at once may not fit; values and gradients are equal."""
    params, features, points = drawn

    def value(p, f):
        return jnp.square(module().apply({"params": p}, f, points)[0]).sum()

    whole = jax.jit(jax.value_and_grad(value, (0, 1)))(params, features)
    monkeypatch.setattr(sampler, "MAX_BYTES", 1)
    parts = jax.jit(jax.value_and_grad(value, (0, 1)))(params, features)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), whole, parts)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(whole[1]))


def test_an_empty_slot_is_finite_and_touches_no_other(drawn):
    params, features, points = drawn
    got, _ = compiled()(params, features, points, {})
    features, points = features.copy(), points.copy()
    features[:, 2], points[:, 2] = 0, 0
    again, _ = compiled()(params, features, points, {})
    assert np.isfinite(again).all()
    np.testing.assert_allclose(again[:, :2], got[:, :2], atol=1e-6)
    assert np.abs(again[:, 2] - got[:, 2]).max() > 1e-2


def test_what_is_fed_takes_the_place_of_what_is_found(rng):
    points = jnp.asarray(rng.uniform(size=(2, 3, 20, 2)), jnp.float32)
    start = jnp.zeros((2, 3), jnp.int32)
    fps = jnp.asarray(rng.integers(0, 20, size=(2, 3, 6)), jnp.int32)
    same, near = group(points, 6, 4, start, fps=fps)
    np.testing.assert_array_equal(same, fps)
    np.testing.assert_array_equal(near[..., 0], reference_first(points, fps))
    knn = near[..., ::-1]
    np.testing.assert_array_equal(group(points, 6, 4, start, fps, knn)[1], knn)


def reference_first(points, fps):
    """The nearest point to an anchor: itself, or the first at its place."""
    return [
        [reference.nearest(p, p[f], 1)[:, 0] for p, f in zip(*pair, strict=True)]
        for pair in zip(np.asarray(points), np.asarray(fps), strict=True)
    ]


def test_devices_find_points_of_their_own_rows_without_talking(rng):
    points = rng.uniform(size=(8, 2, 30, 2)).astype(np.float32)
    start = np.arange(16, dtype=np.int32).reshape(8, 2)
    plain = jax.jit(lambda p, s: group(p, 6, 4, s))(points, start)
    mesh = sharding.make_mesh(4, 2, 1)
    with sharding.use(mesh, "fsdp"):
        batch = sharding.put_batch({"p": points, "s": start}, mesh)
        run = jax.jit(lambda b: group(b["p"], 6, 4, b["s"])).lower(batch).compile()
        split = run(batch)
    for a, b in zip(plain, split, strict=True):
        np.testing.assert_array_equal(a, b)
    text = run.as_text()
    for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert not re.search(rf"\b{name}\b.*\(", text), name


def test_points_are_found_without_the_host(rng):
    """A call of it has "_callback" in its name, where it lowers for another platform at all."""
    points = jnp.asarray(rng.uniform(size=(2, 3, 30, 2)), jnp.float32)
    start = jnp.zeros((2, 3), jnp.int32)

    def lowered(find, platform):
        traced = jax.jit(find).trace(points, start)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    def asking(points, start):
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(start.shape, start.dtype), start)

    assert "_callback" in lowered(asking, "cpu")
    for platform in ("cpu", "tpu", "cuda"):
        text = lowered(lambda points, start: group(points, 6, 4, start), platform)
        assert "_callback" not in text, platform

"""Reading maps at points, farthest points and neighbours, against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mg_jax.ops.point_sample import (
    bilinear_taps,
    crossed,
    farthest_points,
    gather_weighted,
    nearest_points,
    sample_map,
    take_points,
    upsampled_taps,
)
from tests import ferret_reference as reference


def test_maps_are_read_with_corners_aligned_and_zeros_outside(rng):
    features = rng.normal(size=(2, 4, 6, 3)).astype(np.float32)
    at = rng.uniform(-0.4, 1.4, size=(2, 40, 2)).astype(np.float32)
    at[:, :4] = [[0, 0], [1, 1], [0, 1], [1, 0]]
    got = jax.jit(sample_map)(features, at)
    want = [reference.grid_sample(f, a) for f, a in zip(features, at, strict=True)]
    np.testing.assert_allclose(got, want, atol=1e-5)
    corners = features[:, [0, -1, 0, -1], [0, -1, -1, 0]]
    np.testing.assert_allclose(got[:, :4], corners, atol=1e-6)
    beyond = jnp.full((2, 1, 2), 1.5)
    np.testing.assert_array_equal(sample_map(features, beyond), 0)


def test_the_gradient_of_a_map_is_what_was_read_of_it(rng):
    """The reading is linear: its gradient at any direction is the reading of that direction."""
    features = jnp.asarray(rng.normal(size=(1, 3, 4, 2)), jnp.float32)
    at = jnp.asarray(rng.uniform(size=(1, 9, 2)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(1, 9, 2)), jnp.float32)
    gradient = jax.grad(lambda f: (sample_map(f, at) * weight).sum())(features)
    other = rng.normal(size=features.shape).astype(np.float32)
    want = (reference.grid_sample(other[0], at[0]) * weight[0]).sum()
    np.testing.assert_allclose((gradient * other).sum(), want, rtol=1e-4)


@pytest.mark.parametrize("rule", ["nearest", "bilinear"])
@pytest.mark.parametrize(("source", "size"), [(4, 4), (4, 12), (4, 6), (6, 4), (3, 18)])
def test_an_upsampled_map_is_read_without_making_it(rng, rule, source, size):
    features = rng.normal(size=(source, source, 2)).astype(np.float32)
    at = rng.uniform(size=(25, 2)).astype(np.float32)
    wide = reference.upsample(features, size, 2 * size, rule)
    want = reference.grid_sample(wide, at)

    def taps(axis, cells):
        fine = bilinear_taps(at[None, :, axis] * (cells - 1), cells)
        return upsampled_taps(fine, cells, source, rule)

    row, column, weight = crossed(taps(0, size), taps(1, 2 * size))
    got = gather_weighted(features.reshape(1, -1, 2), row * source + column, weight)
    np.testing.assert_allclose(got[0], want, atol=1e-5)


def lattice(rng, count):
    """Points of a coarse lattice with repeats: many are equally far, some the same."""
    return (rng.integers(0, 7, size=(3, count, 2)) / 8).astype(np.float32)


@pytest.mark.parametrize("drawn", ["anywhere", "lattice", "alike"])
def test_farthest_points_are_the_greedy_ones(rng, drawn):
    points = rng.uniform(size=(3, 50, 2)).astype(np.float32)
    if drawn == "lattice":
        points = lattice(rng, 50)
    elif drawn == "alike":  # fewer places than points asked for: the first one again and again
        points = points[:, rng.integers(0, 5, 50)]
    start = np.array([0, 7, 49], np.int32)
    got = jax.jit(farthest_points, static_argnums=1)(points, 12, start)
    want = [reference.farthest(p, 12, s) for p, s in zip(points, start, strict=True)]
    np.testing.assert_array_equal(got, want)
    if drawn == "alike":
        assert (np.asarray(got)[:, -3:] == 0).all()


@pytest.mark.shared
def test_farthest_points_are_those_recorded(shared):
    """Given the first one, in both stages, of boxes, points and a free form."""
    with np.load(shared / "golden" / "ferret" / "A_v1" / "inputs.npz") as given:
        points = given["sampled_points"]
        for i in range(2):
            chosen = given[f"stage{i}_fps_idx"]
            got = farthest_points(points, chosen.shape[1], chosen[:, 0])
            np.testing.assert_array_equal(got, chosen)
            points = np.take_along_axis(points, chosen[..., None], 1)


@pytest.mark.parametrize("drawn", ["anywhere", "lattice"])
def test_neighbours_are_the_nearest_the_first_of_equals(rng, drawn):
    points = rng.uniform(size=(3, 40, 2)).astype(np.float32)
    points = lattice(rng, 40) if drawn == "lattice" else points
    got = jax.jit(nearest_points, static_argnums=2)(points, points[:, :6], 9)
    want = [reference.nearest(p, p[:6], 9) for p in points]
    np.testing.assert_array_equal(got, want)


def test_points_are_taken_of_their_own_region(rng):
    values = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    index = rng.integers(0, 5, size=(2, 3, 6, 2))
    got = take_points(values, index)
    for b in range(2):
        for q in range(3):
            np.testing.assert_array_equal(got[b, q], values[b, q][index[b, q]])

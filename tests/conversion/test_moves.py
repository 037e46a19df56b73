"""Copies between orders of axes, comparison of bits, and memory that is lent again."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from conversion.moves import RUN, TILE, Pool, bits_equal, move

DTYPES = [np.uint8, np.float16, ml_dtypes.bfloat16, np.float32, np.int64, np.complex128]


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_order_of_axes(rng, order, dtype):
    source = rng.integers(0, 99, (5, TILE + 3, 21)).astype(dtype)
    to = np.empty([source.shape[axis] for axis in order], dtype)
    move(to, source.transpose(order))
    assert to.tobytes() == np.ascontiguousarray(source.transpose(order)).tobytes()
    back = np.zeros_like(source)
    move(back.transpose(order), to)
    assert back.tobytes() == source.tobytes()


def test_past_the_ends_of_tiles_and_into_a_part(rng):
    source = rng.standard_normal((RUN + 5, 2 * TILE + 1)).astype(np.float32)
    to = np.zeros((2 * TILE + 3, RUN + 7), np.float32)
    move(to[1:-1, 1:-1], source.T)
    np.testing.assert_array_equal(to[1:-1, 1:-1], source.T)
    assert not to[0].any() and not to[:, -1].any()


@pytest.mark.parametrize("shape", [(), (1,), (1, 3, 1), (0, 4)])
def test_small_and_empty_shapes(shape):
    source = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    to = np.full(shape, 7, np.float32)
    move(to, source)
    np.testing.assert_array_equal(to, source)


def test_a_cast_rounds_as_numpy_does(rng):
    source = rng.standard_normal((300, 70)).astype(np.float32)
    to = np.empty((70, 300), ml_dtypes.bfloat16)
    move(to, source.T)
    assert to.tobytes() == np.ascontiguousarray(source.T.astype(ml_dtypes.bfloat16)).tobytes()


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        move(np.zeros((2, 3)), np.zeros((3, 2)))


def test_bits_not_values_are_compared():
    a = np.array([np.nan, 0.0, 1.0], np.float32)
    assert bits_equal(a, a.copy())
    assert not bits_equal(a, np.array([np.nan, -0.0, 1.0], np.float32))
    assert not bits_equal(a, a.astype(np.float64))
    assert not bits_equal(a, a[None])
    assert bits_equal(np.zeros((0, 3)), np.zeros((0, 3)))


def test_memory_is_lent_again_and_counted():
    pool = Pool()
    first = pool.lend((4, 8), np.float32)
    first[:] = 1
    address = first.ctypes.data
    second = pool.lend((2,), np.int64)
    assert pool.now == pool.most == 128 + 16
    pool.give_back(first)
    third = pool.lend((8, 5), np.uint8)  # fits into the first one's memory
    assert third.ctypes.data == address and pool.now == 128 + 16 == pool.most
    pool.give_back(third)
    pool.give_back(second)
    assert pool.now == 0
    pool.lend((1000,), np.uint8)  # nothing idle is large enough, so all of that is let go
    assert pool.now == 1000 == pool.most

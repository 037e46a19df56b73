"""The weights of an ONNX graph, read without the onnx package.

A .onnx file is one protobuf message (onnx.proto): ModelProto.graph = 7; of GraphProto node = 1 and
initializer = 5; of NodeProto input = 1, name = 3, op_type = 4; of TensorProto dims = 1,
data_type = 2, float_data = 4, name = 8, raw_data = 9, data_location = 14.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mg_jax.errors import UserError

_DTYPES: dict[int, Any] = {  # TensorProto.DataType, little-endian as raw_data is
    1: np.dtype("<f4"), 2: np.dtype("u1"), 3: np.dtype("i1"), 6: np.dtype("<i4"),
    7: np.dtype("<i8"), 9: np.dtype("?"), 10: np.dtype("<f2"), 11: np.dtype("<f8"),
    16: np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip
_FLOAT = 1


class Node(NamedTuple):
    """An operation of the graph and the names of what it reads."""

    name: str
    op: str
    inputs: tuple[str, ...]


class Graph(NamedTuple):
    """`arrays`: initialisers by name, views of the file; those of types that are not known here
    are left out. `nodes` in the order of the file."""

    arrays: dict[str, np.ndarray]
    nodes: list[Node]


def read_graph(path: str | Path) -> Graph:
    """Initialisers and nodes of a .onnx file. Raises UserError for a file that is none."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        graph = next(_messages(data, 7), None)
        if graph is None:
            raise ValueError("it holds no graph")
        arrays: dict[str, np.ndarray] = {}
        for tensor in _messages(graph, 5):
            name, array = _array(tensor)
            if array is not None:
                arrays[name] = array
        return Graph(arrays, [_node(node) for node in _messages(graph, 1)])
    except (OSError, ValueError, TypeError, IndexError, OverflowError) as e:
        reason = getattr(e, "strerror", None) or str(e) or "it is cut off"
        raise UserError(f"{path}: no ONNX model: {reason}") from None


def _node(data: memoryview) -> Node:
    texts: dict[int, list[str]] = {1: [], 3: [], 4: []}
    for number, value in _fields(data):
        if number in texts:
            texts[number].append(_text(value))
    return Node("".join(texts[3]), "".join(texts[4]), tuple(texts[1]))


def _array(data: memoryview) -> tuple[str, np.ndarray | None]:
    """(name, values) of a tensor; None for a type that is not known, or kept in another file."""
    name, kind, dims, raw, floats, elsewhere = "", 0, [], None, [], False
    for number, value in _fields(data):
        if number == 1:
            dims += [value] if isinstance(value, int) else list(_varints(value))
        elif number == 2:
            kind = value
        elif number == 4:
            floats.append(value)
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = value
        elif number == 14:
            elsewhere = value == 1
    if elsewhere or kind not in _DTYPES or (raw is None and kind != _FLOAT):
        return name, None
    content = raw if raw is not None else b"".join(bytes(x) for x in floats)
    return name, np.frombuffer(content, _DTYPES[kind]).reshape(dims)


def _messages(data: memoryview, wanted: int) -> Iterator[memoryview]:
    for number, value in _fields(data):
        if number == wanted:
            yield value


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(number, value) of a message: an int, or the bytes of a string, message or fixed number."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"byte {at} begins no field")
        if at + size > end:
            raise ValueError("it is cut off")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"byte {at} belongs to no number")


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _text(value: Any) -> str:
    if isinstance(value, int):
        raise ValueError("a name is a number")
    return bytes(value).decode("utf-8", "replace")

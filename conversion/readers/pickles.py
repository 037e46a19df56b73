"""The pickles of torch files, read without running them.

`mg_jax.pickles` builds plain containers and numbers; this adds the few globals with which torch
describes a tensor. It imports nothing and calls nothing but its own functions below. Anything else
is refused with the file, the opcode and the global named. Classes that training tools are known to
leave beside the weights (`INERT`) are not made either: an `Inert` placeholder stands in their
place.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from conversion.readers.source import Stream, fits
from mg_jax import pickles
from mg_jax.errors import shown

# torch's names of dtypes -> NumPy's
DTYPES: dict[str, Any] = {
    "float64": np.float64, "float32": np.float32, "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64, "int32": np.int32, "int16": np.int16, "int8": np.int8,
    "uint64": np.uint64, "uint32": np.uint32, "uint16": np.uint16, "uint8": np.uint8,
    "bool": np.bool_, "complex64": np.complex64, "complex128": np.complex128,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz, "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip
# torch's storage classes -> NumPy's dtypes
STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_, "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128, "UntypedStorage": np.uint8,
}  # fmt: skip
STORAGE_MODULES = ("torch", "torch.storage", "torch.cuda")
# What trainers (argparse, DeepSpeed, mmengine) store beside the weights, and tensor classes that
# are named without being called.
INERT = {
    "argparse.Namespace", "collections.Counter", "collections.deque", "_codecs.encode",
    "__builtin__.set", "__builtin__.frozenset", "__builtin__.bytearray", "__builtin__.complex",
    "builtins.set", "builtins.frozenset", "builtins.bytearray", "builtins.complex",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype", "numpy.ndarray",
    "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar",
    "torch.device", "torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter",
    *(f"{module}.{name.removesuffix('Storage')}Tensor"
      for module in ("torch", "torch.cuda") for name in STORAGES),
}  # fmt: skip
GETATTR = ("__builtin__.getattr", "builtins.getattr")


@dataclasses.dataclass
class Storage:
    """`count` elements of `dtype` from byte `begin` of the file on, once the container knows it."""

    key: Any
    dtype: np.dtype
    count: int
    begin: int = -1

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.count * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor as torch describes it: `offset` and `strides` count elements of its storage."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def extent(self) -> int:
        """Elements from the first to the last one, gaps included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))


@dataclasses.dataclass(frozen=True)
class Inert:
    """Stands for a class or an object of it that is known and was not made."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Known:
    """A global of torch's: what it stands for, here a dtype or a function of ours."""

    name: str
    value: Any


def storage_dtype(value: Any) -> np.dtype:
    """The dtype of a storage class. Raises ValueError for anything else."""
    if not (isinstance(value, _Known) and value.name.endswith("Storage")):
        raise ValueError("a storage without a class")
    return value.value


def load(stream: Stream, where: str, persistent: Callable[[Any], Any]) -> Any:
    """One pickle from `stream`, which is left right behind it.

    `persistent(id)` gives what a persistent id stands for. Mappings become dicts; tensors stay
    `Tensor`. Raises UserError naming `where` when it is unsafe, cut short or broken.
    """
    return _Torch(where, persistent).run(stream)


class _Torch(pickles.Machine):
    """The machine that knows torch's globals, and placeholders for those of trainers."""

    accepted = (
        "tensors, numbers and plain containers are read, so save the state dict alone or as "
        "safetensors"
    )

    def __init__(self, where: str, persistent: Callable[[Any], Any]):
        super().__init__(where)
        self._persistent_id = persistent

    def persistent(self, saved: Any) -> Any:
        return self._persistent_id(saved)

    def find(self, name: str) -> Any:
        module, _, last = name.rpartition(".")
        if module in STORAGE_MODULES and last in STORAGES:
            return _Known(name, np.dtype(STORAGES[last]))
        if module == "torch" and last in DTYPES:
            return _Known(name, np.dtype(DTYPES[last]))
        if name in FUNCTIONS:
            return _Known(name, FUNCTIONS[name])
        if name in INERT or name in GETATTR:
            return Inert(name)
        return super().find(name)

    def reduce(self, function: Any, arguments: Any) -> Any:
        if not isinstance(arguments, tuple):
            raise ValueError("arguments that are no tuple")
        if isinstance(function, Inert):
            if function.name not in GETATTR:
                return function
            # pickle names a method of a class so (mmengine's HistoryBuffer.min and such)
            owner, name = arguments
            if isinstance(owner, Inert) and owner.name not in GETATTR and isinstance(name, str):
                return Inert(f"{owner.name}.{name}")
            self.refuse(f"calls {function.name} on {describe(owner)}")
        if isinstance(function, _Known) and callable(function.value):
            return function.value(*arguments)
        return super().reduce(function, arguments)

    def make(self, made_of: Any) -> Any:
        return made_of if isinstance(made_of, Inert) else super().make(made_of)

    def build(self, target: Any) -> None:  # such as the _metadata of a state dict
        if not isinstance(target, dict | Inert):
            super().build(target)

    def extend(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, Inert):
            super().extend(target, items)

    def set_items(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, Inert):
            super().set_items(target, items)

    def describe(self, value: Any) -> str:
        return describe(value)


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of elements, of a size that can be printed."""
    return type(value) is int and 0 <= value < 1 << 63


def describe(value: Any) -> str:
    """A value for messages, short whatever it holds."""
    if isinstance(value, Inert | _Known):
        return value.name
    return "a tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def named(key: Any) -> str:
    """A key for messages, short whatever it is."""
    if isinstance(key, int) and key.bit_length() > 64:  # Python refuses to print the longest
        return "a huge number"
    return shown(str(key)) if isinstance(key, str | int | float | bytes | None) else describe(key)


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """OrderedDict() and, as Python 2 pickled it, OrderedDict([[key, value], ...])."""
    made: dict[Any, Any] = {}
    for pair in arguments[0] if arguments else ():
        key, value = pair
        if not isinstance(key, str | int) or key in made:
            raise ValueError("an OrderedDict of odd or repeated keys")
        made[key] = value
    return made


def _default_mapping(*_factory: Any) -> dict[Any, Any]:
    return {}


def _size(dims: Any) -> tuple[int, ...]:
    if not isinstance(dims, tuple | list):
        raise ValueError("a torch.Size of no tuple")
    return tuple(dims)


def tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, dtype: np.dtype | None = None
) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    shape, strides = _size(shape), _size(strides)
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(map(is_count, numbers)):
        raise ValueError("a tensor of odd shape or strides")
    dtype = storage.dtype if dtype is None else dtype
    if not fits(shape, dtype.itemsize):
        raise ValueError("a tensor of odd shape or strides")
    # no step is taken along a single entry, so its length may be anything
    strides = tuple(step if n > 1 else 0 for n, step in zip(shape, strides, strict=True))
    made = Tensor(storage, dtype, offset, shape, strides)
    if (offset + made.extent) * made.dtype.itemsize > storage.nbytes:
        raise ValueError("a tensor larger than its storage")
    return made


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """torch._utils._rebuild_tensor and _v2: rest is requires_grad, hooks, metadata."""
    _no_metadata(rest[2:])
    return tensor(storage, offset, shape, strides)


def _rebuild_v3(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v3: rest is requires_grad, hooks, dtype, metadata."""
    _no_metadata(rest[3:])
    if not (isinstance(rest[2], _Known) and isinstance(rest[2].value, np.dtype)):
        raise ValueError("a tensor without a dtype")
    return tensor(storage, offset, shape, strides, rest[2].value)


def _no_metadata(metadata: tuple[Any, ...]) -> None:
    if metadata and metadata[0]:
        raise ValueError("a conjugated or negated view, which is not supported")


def _parameter(data: Any, *_rest: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter without a tensor")
    return data


def _from_type(function: Any, _type: Any, arguments: Any, _state: Any) -> Tensor:
    """torch._tensor._rebuild_from_type_v2: a tensor with attributes, which are dropped."""
    if not (isinstance(function, _Known) and function.value in (_rebuild, _rebuild_v3)):
        raise ValueError("a tensor of an odd type")
    return function.value(*arguments)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _default_mapping,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
}

"""The pickles of torch files, read without running them.

A pickle is a program. This reader knows the opcodes that build plain containers and numbers, and
the few globals with which torch describes a tensor; it imports nothing and calls nothing but its
own functions below. Anything else is refused with the file, the opcode and the global named.
Classes that training tools are known to leave beside the weights (`INERT`) are not made either:
an `Inert` placeholder stands in their place.
"""

import dataclasses
import pickletools
import struct
from collections.abc import Callable
from typing import IO, Any, NoReturn, cast

import ml_dtypes
import numpy as np

from conversion.readers.source import Stream, shown
from mg_jax.errors import UserError

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
    machine = _Machine(where, persistent)
    try:
        # genops needs no more of a file than Stream has
        for opcode, argument, position in pickletools.genops(cast(IO[bytes], stream)):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.opcode, machine.position = opcode.name, position or 0
            machine.step(opcode.name, argument)
    except UserError:
        raise
    except (ValueError, TypeError, LookupError, OverflowError, struct.error) as error:
        raise UserError(
            f"{where}: cut short or broken: its pickle cannot be read past byte "
            f"{machine.position} ({shown(str(error))})"
        ) from None
    raise AssertionError("genops ends with STOP")


class _Machine:
    """The stack machine of pickle, without the means to do anything."""

    def __init__(self, where: str, persistent: Callable[[Any], Any]):
        self.where, self.persistent = where, persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.opcode, self.position = "", 0

    def refuse(self, what: str) -> NoReturn:
        raise UserError(
            f"{self.where}: refused, nothing in it was run: its pickle {shown(what)} (opcode "
            f"{self.opcode} at byte {self.position}); only tensors, numbers and plain containers "
            "are read, so save the state dict alone or as safetensors"
        )

    def step(self, opcode: str, argument: Any) -> None:
        """One opcode, by its name in pickletools."""
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case (
                "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4"
                | "FLOAT" | "BINFLOAT" | "STRING" | "BINSTRING" | "SHORT_BINSTRING"
                | "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8"
                | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8"
            ):  # fmt: skip
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode == "NEWTRUE")
            case "EMPTY_LIST" | "EMPTY_SET":  # a set's order and hashes are of no use here
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                self.marked.append(stack)
                self.stack = []
            case "LIST":
                self.push(self.since_mark())
            case "TUPLE" | "FROZENSET":
                self.push(tuple(self.since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(opcode[-1]))]
                stack.append(tuple(reversed(items)))
            case "DICT":
                made: dict[Any, Any] = {}
                self.set_items(made, self.since_mark())
                self.push(made)
            case "APPEND":
                value = stack.pop()
                self.extend(stack[-1], [value])
            case "APPENDS" | "ADDITEMS":
                items = self.since_mark()
                self.extend(self.stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.set_items(stack[-1], [key, value])
            case "SETITEMS":
                items = self.since_mark()
                self.set_items(self.stack[-1], items)
            case "POP":
                if stack:
                    stack.pop()
                else:
                    self.since_mark()
            case "POP_MARK":
                self.since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(self.find(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                if not (isinstance(name, str) and isinstance(module, str)):
                    raise ValueError("a global whose name is no text")
                stack.append(self.find(f"{module}.{name}"))
            case "PERSID":
                stack.append(self.persistent(argument))
            case "BINPERSID":
                stack.append(self.persistent(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self.reduce(function, arguments))
            case "NEWOBJ":
                arguments, made_of = stack.pop(), stack.pop()
                if not isinstance(made_of, Inert):
                    self.refuse(f"makes an object of {describe(made_of)}")
                stack.append(made_of)
            case "BUILD":  # attributes, such as the _metadata of a state dict, are dropped
                stack.pop()
                if not isinstance(stack[-1], dict | Inert):
                    self.refuse(f"sets the state of {describe(stack[-1])}")
            case _:
                named = "" if argument is None else f" with {argument}"
                self.refuse(f"uses opcode {opcode}{named}")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        """What was pushed since the last mark, which goes."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def extend(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            self.refuse(f"appends to {describe(target)}")

    def set_items(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict | Inert):
            self.refuse(f"sets items of {describe(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(target, Inert):
                continue
            # other keys would need hashing, and a tuple may be nested without end
            if not isinstance(key, str | int | float | bytes | None):
                self.refuse(f"has {describe(key)} as a key")
            if key in target:
                raise UserError(f"{self.where}: {key!r} stands twice in its pickle")
            target[key] = value

    def find(self, name: str) -> Any:
        """What a global stands for."""
        module, _, last = name.rpartition(".")
        if module in STORAGE_MODULES and last in STORAGES:
            return _Known(name, np.dtype(STORAGES[last]))
        if module == "torch" and last in DTYPES:
            return _Known(name, np.dtype(DTYPES[last]))
        if name in FUNCTIONS:
            return _Known(name, FUNCTIONS[name])
        if name in INERT or name in GETATTR:
            return Inert(name)
        self.refuse(f"asks for the global {name}")

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
        self.refuse(f"calls {describe(function)}")


def describe(value: Any) -> str:
    """A value for messages, short whatever it holds."""
    if isinstance(value, Inert | _Known):
        return value.name
    return "a tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"


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
    if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("a tensor of odd shape or strides")
    made = Tensor(storage, storage.dtype if dtype is None else dtype, offset, shape, strides)
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

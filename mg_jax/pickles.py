"""Pickles read without running them.

A pickle is a program. This reader knows the opcodes that build numbers, texts and plain containers;
it imports nothing and calls nothing. Whatever needs a global (a class, a function) is refused with
the file, the opcode and the global named; `conversion.readers.pickles` adds those of torch.

Protocols 0 to 5, as Python 2 and 3 write them. Python 2's byte strings come as text: as UTF-8 where
they are that, as Latin-1 otherwise. Sets come as lists.
"""

import codecs
import io
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol

from mg_jax.errors import UserError, shown


class Stream(Protocol):
    """What is needed of a binary file."""

    def tell(self) -> int: ...
    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...


def load(path: Path) -> Any:
    """The object of a file that is one pickle.

    Raises UserError naming it when it is unsafe, cut short or broken.
    """
    return Machine(str(path)).run(io.BytesIO(path.read_bytes()))


class Machine:
    """The stack machine of pickle, without the means to do anything.

    Subclasses know globals and persistent ids by overriding `find`, `persistent`, `reduce`, `make`
    and `build`, which refuse here.
    """

    accepted = "numbers, texts and plain containers are read"

    def __init__(self, where: str):
        self.where = where
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.opcode, self.position = "", 0

    def run(self, stream: Stream) -> Any:
        """One pickle from `stream`, which is left right behind it; mappings become dicts."""
        steps = {code: self._step(name) for code, (name, _) in _TABLE.items()}
        try:
            while self.opcode != "STOP":  # tens of millions of rounds for a file of annotations
                self.position = stream.tell()
                code = stream.read(1)
                if code not in steps:
                    raise ValueError(f"opcode {code!r} unknown" if code else "it ends without STOP")
                self.opcode, reader = _TABLE[code]
                steps[code](None if reader is None else reader(stream))
            return self.stack.pop()
        except UserError:
            raise
        except (
            ValueError, TypeError, LookupError, OverflowError, RecursionError, struct.error
        ) as error:  # fmt: skip
            raise UserError(
                f"{self.where}: cut short or broken: its pickle cannot be read past byte "
                f"{self.position} ({shown(str(error))})"
            ) from None

    def _step(self, opcode: str) -> Callable[[Any], None]:
        return self._value if opcode in _VALUES else getattr(self, _STEPS.get(opcode, "unknown"))

    def refuse(self, what: str) -> NoReturn:
        """Raise UserError: the pickle does what is not allowed."""
        raise UserError(
            f"{self.where}: refused, nothing in it was run: its pickle {shown(what)} (opcode "
            f"{self.opcode} at byte {self.position}); only {self.accepted}"
        )

    def unknown(self, argument: Any) -> NoReturn:
        """Refuse the opcode."""
        named = "" if argument is None else f" with {argument}"
        self.refuse(f"uses opcode {self.opcode}{named}")

    # What subclasses override

    def find(self, name: str) -> Any:
        """What a global stands for."""
        self.refuse(f"asks for the global {name}")

    def persistent(self, saved: Any) -> Any:
        """What a persistent id stands for."""
        self.unknown(None)  # not `saved`: to print a nest of tuples may take for ever

    def reduce(self, function: Any, arguments: Any) -> Any:
        """The value of a call."""
        self.refuse(f"calls {self.describe(function)}")

    def make(self, made_of: Any) -> Any:
        """An object of a class, without its arguments."""
        self.refuse(f"makes an object of {self.describe(made_of)}")

    def build(self, target: Any) -> None:
        """An object whose attributes are set; they are dropped."""
        self.refuse(f"sets the state of {self.describe(target)}")

    def extend(self, target: Any, items: list[Any]) -> None:
        """Append to a list."""
        if not isinstance(target, list):
            self.refuse(f"appends to {self.describe(target)}")
        target.extend(items)

    def set_items(self, target: Any, items: list[Any]) -> None:
        """Set keys and values, in turn, of a dict."""
        if not isinstance(target, dict):
            self.refuse(f"sets items of {self.describe(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # other keys would need hashing, and a tuple may be nested without end
            if not isinstance(key, str | int | float | bytes | None):
                self.refuse(f"has {self.describe(key)} as a key")
            if key in target:
                raise UserError(f"{self.where}: {key!r} stands twice in its pickle")
            target[key] = value

    def describe(self, value: Any) -> str:
        """A value for messages, short whatever it holds."""
        return f"a {type(value).__name__}"

    # The opcodes

    def _value(self, argument: Any) -> None:
        self.stack.append(argument)

    def _nothing(self, _: Any) -> None:
        pass

    def _constant(self, _: Any) -> None:
        self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[self.opcode])

    def _empty(self, _: Any) -> None:
        made: Any = {"EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}.get(self.opcode, list)()
        self.stack.append(made)

    def _mark(self, _: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        """What was pushed since the last mark, which goes."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _list(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append(items)

    def _tuple(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append(tuple(items))

    def _short_tuple(self, _: Any) -> None:
        items = [self.stack.pop() for _ in range(int(self.opcode[-1]))]
        self.stack.append(tuple(reversed(items)))

    def _dict(self, _: Any) -> None:
        items = self._since_mark()
        made: dict[Any, Any] = {}
        self.set_items(made, items)
        self.stack.append(made)

    def _append(self, _: Any) -> None:
        value = self.stack.pop()
        self.extend(self.stack[-1], [value])

    def _appends(self, _: Any) -> None:
        items = self._since_mark()
        self.extend(self.stack[-1], items)

    def _set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items(self.stack[-1], [key, value])

    def _set_items(self, _: Any) -> None:
        items = self._since_mark()
        self.set_items(self.stack[-1], items)

    def _pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._since_mark()

    def _pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _again(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _put(self, slot: Any) -> None:
        self.memo[len(self.memo) if slot is None else slot] = self.stack[-1]

    def _get(self, slot: Any) -> None:
        self.stack.append(self.memo[slot])

    def _global(self, argument: Any) -> None:
        if argument is not None:
            name = argument.replace(" ", ".", 1)
        else:
            last, module = self.stack.pop(), self.stack.pop()
            if not (isinstance(last, str) and isinstance(module, str)):
                raise ValueError("a global whose name is no text")
            name = f"{module}.{last}"
        self.stack.append(self.find(name))

    def _persistent(self, argument: Any) -> None:
        saved = self.stack.pop() if argument is None else argument
        self.stack.append(self.persistent(saved))

    def _reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.reduce(function, arguments))

    def _new_object(self, _: Any) -> None:
        _, made_of = self.stack.pop(), self.stack.pop()
        self.stack.append(self.make(made_of))

    def _build(self, _: Any) -> None:
        self.stack.pop()
        self.build(self.stack[-1])


_VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8".split()
)
# The name of an opcode in pickletools -> what is done
_STEPS = {
    "PROTO": "_nothing", "FRAME": "_nothing", "STOP": "_nothing",
    "NONE": "_constant", "NEWTRUE": "_constant", "NEWFALSE": "_constant",
    # a set's order and hashes are of no use here
    "EMPTY_LIST": "_empty", "EMPTY_SET": "_empty", "EMPTY_TUPLE": "_empty", "EMPTY_DICT": "_empty",
    "MARK": "_mark", "LIST": "_list", "TUPLE": "_tuple", "FROZENSET": "_tuple", "DICT": "_dict",
    "TUPLE1": "_short_tuple", "TUPLE2": "_short_tuple", "TUPLE3": "_short_tuple",
    "APPEND": "_append", "APPENDS": "_appends", "ADDITEMS": "_appends",
    "SETITEM": "_set_item", "SETITEMS": "_set_items",
    "POP": "_pop", "POP_MARK": "_pop_mark", "DUP": "_again",
    "PUT": "_put", "BINPUT": "_put", "LONG_BINPUT": "_put", "MEMOIZE": "_put",
    "GET": "_get", "BINGET": "_get", "LONG_BINGET": "_get",
    "GLOBAL": "_global", "STACK_GLOBAL": "_global",
    "PERSID": "_persistent", "BINPERSID": "_persistent",
    "REDUCE": "_reduce", "NEWOBJ": "_new_object", "BUILD": "_build",
}  # fmt: skip


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _quoted(stream: Stream) -> str:
    """The repr of a byte string on a line of its own; pickletools refuses what is not ASCII."""
    line = stream.readline()
    if not (len(line) > 2 and line[0] in b"'\"" and line[0] == line[-2] and line.endswith(b"\n")):
        raise ValueError("a string without its quotes")
    return _text(codecs.escape_decode(line[1:-2])[0])


def _counted(size: str) -> Callable[[Stream], str]:
    def read(stream: Stream) -> str:
        (count,) = struct.unpack(size, stream.read(struct.calcsize(size)))
        raw = stream.read(count) if count >= 0 else b""
        if len(raw) != count:
            raise ValueError(f"a string of {count} bytes, of which {len(raw)} are there")
        return _text(raw)

    return read


def _slot(stream: Stream) -> int:
    return int(stream.readline())


# byte -> (name, how its argument is read)
_TABLE: dict[bytes, tuple[str, Callable[[Any], Any] | None]] = {
    op.code.encode("latin-1"): (op.name, op.arg.reader if op.arg else None)
    for op in pickletools.opcodes
}
_TABLE[b"p"] = ("PUT", _slot)  # the commonest one, and so twice as fast
_TABLE[b"S"] = ("STRING", _quoted)
_TABLE[b"T"] = ("BINSTRING", _counted("<i"))
_TABLE[b"U"] = ("SHORT_BINSTRING", _counted("<B"))

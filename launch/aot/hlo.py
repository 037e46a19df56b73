"""Reading a compiled program: its operations, with their bytes and how often each runs.

XLA's own counters take every loop once; here a loop counts as often as it runs, where the text says
so. Only text is read, so the same code serves TPU and GPU programs.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from mg_jax import fused
from mg_jax.errors import UserError

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8, "s16": 16, "u16": 16,
    "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64,
    "c64": 64, "c128": 128, "token": 0, "opaque": 0,
}  # fmt: skip
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
               "ragged-all-to-all", "collective-broadcast")  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,<=]*)\](\{[^{}]*\})?")
_HEAD = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s*(?:\(.*\)\s*->.*)?\{\s*$")
_LINE = re.compile(r"^\s+(ROOT\s+)?%?([\w.\-]+)\s*=\s*(.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|branch_computations|called_computations|"
                     r"true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an operation's type. `space`: 0 is the device's memory, 1 what is on the chip
    beside the cores, 5 the host's."""

    dtype: str
    shape: tuple[int, ...]
    space: int

    @property
    def size(self) -> float:
        """Bytes, without what tiling adds."""
        return math.prod(self.shape) * BITS.get(self.dtype, 32) / 8


@dataclasses.dataclass(frozen=True)
class Op:
    """A line of a computation: opcode(operands), attributes as text."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def size(self) -> float:
        """Bytes that it makes."""
        return sum(a.size for a in self.arrays)

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls."""
        found = _CALLED.findall(self.attributes)
        return tuple(
            name for group in found for n in group.strip("{}").split(",")
            if (name := n.strip().lstrip("%"))
        )  # fmt: skip

    def attribute(self, name: str) -> str:
        """The text of an attribute up to the next comma outside of braces, "" without it."""
        match = re.search(rf"(?:^|,\s*){name}=", self.attributes)
        if not match:
            return ""
        rest, depth = self.attributes[match.end() :], 0
        for i, c in enumerate(rest):
            depth += (c in "{[(") - (c in "}])")
            if c == "," and not depth:
                return rest[:i]
        return rest


@dataclasses.dataclass(frozen=True)
class Computation:
    """Operations by name, in the order they run."""

    name: str
    ops: dict[str, Op]

    @functools.cached_property
    def root(self) -> Op:
        """The operation whose value it returns."""
        return next((o for o in self.ops.values() if o.root), [*self.ops.values()][-1])

    @functools.cached_property
    def parameters(self) -> list[Op]:
        """Parameters by number."""
        found = [o for o in self.ops.values() if o.opcode == "parameter"]
        return sorted(found, key=lambda o: int(re.match(r"\d*", o.attributes).group() or 0))


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: computations by name, which one it starts with, and for how many devices."""

    computations: dict[str, Computation]
    entry: Computation
    devices: int = 1


def parse(text: str) -> Module:
    """The program of `compiled.as_text()`. Raises UserError when it holds none."""
    computations: dict[str, Computation] = {}
    entry, name, ops = None, "", {}
    for line in _lines(text):
        if name and line.startswith("}"):
            computations[name], name = Computation(name, ops), ""
        elif name:
            if (match := _LINE.match(line)) is not None:
                op = _op(match)
                ops[op.name] = op
        elif (match := _HEAD.match(line)) is not None and not line.startswith("HloModule"):
            name, ops = match[2], {}
            entry = name if match[1] else entry
    if entry is None:
        raise UserError("the compiled program has no text that can be read")
    head = re.search(r"^HloModule.*", text, re.MULTILINE)
    counts = re.findall(r"\b(?:replica_count|num_partitions)=(\d+)", head[0] if head else "")
    return Module(computations, computations[entry], math.prod(map(int, counts)))


def _lines(text: str) -> Iterator[str]:
    """Lines, of which a kernel's attributes may make one of several: these are joined."""
    held: list[str] = []
    for line in text.splitlines():
        if held and line.startswith(("}}", '"', ' "')):
            held.append(line)
            continue
        yield "".join(held)
        held = [line]
    yield "".join(held)


def _op(match: re.Match) -> Op:
    root, name, rest = bool(match[1]), match[2], match[3]
    kind, rest = _split(rest)
    opcode, _, rest = rest.lstrip().partition("(")
    end = _closing("(" + rest)
    inside, attributes = rest[: end - 1], rest[end:].lstrip(", ")
    if opcode in ("parameter", "constant"):
        operands, attributes = (), inside
    else:
        operands = tuple(re.findall(r"%([\w.\-]+)", inside)) or tuple(
            part.strip() for part in inside.split(",") if re.fullmatch(r"\s*[a-z][\w.\-]*\s*", part)
        )
    return Op(name, opcode.strip(), tuple(_arrays(kind)), operands, attributes, root)


def _split(text: str) -> tuple[str, str]:
    """The type at the start of `text`, and the rest."""
    if text.startswith("("):
        end = _closing(text) + 1
        return text[:end], text[end:]
    kind, _, rest = text.partition(" ")
    return kind, rest


def _closing(text: str) -> int:
    """Index of the bracket that closes the one `text` starts with."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if not depth:
            return i
    return len(text) - 1


def _arrays(kind: str) -> Iterator[Array]:
    for dtype, sizes, layout in _ARRAY.findall(kind):
        space = re.search(r"S\((\d+)\)", layout)
        shape = tuple(int(s.strip("<=")) for s in sizes.split(",") if s)
        yield Array(dtype, shape, int(space[1]) if space else 0)


def trips(module: Module, computation: Computation, loop: Op) -> int | None:
    """How often a while loop of `computation` runs: what the compiler noted; else as its counter
    goes from its first value in steps to the bound it is compared with (the compiler doubles
    bodies, and with them the step); None for a loop whose end the data decide."""
    if noted := re.search(r'known_trip_count\\?":\s*\{\\?"n\\?":\\?"(\d+)', loop.attributes):
        return int(noted[1])
    condition = module.computations.get(loop.attribute("condition").lstrip("%"))
    body = module.computations.get(loop.attribute("body").lstrip("%"))
    if condition is None or body is None:
        return None
    compared = [_behind(condition, n) for n in condition.root.operands]
    bounds = [n for op in compared if (n := _number(op)) is not None]
    counters = [op for op in compared if op is not None and op.opcode == "get-tuple-element"]
    upward = condition.root.opcode == "compare" and condition.root.attribute("direction") == "LT"
    if upward and len(bounds) == len(counters) == 1:
        index = int(counters[0].attribute("index"))
        made = computation.ops.get(loop.operands[0])
        first = None
        if made is not None and made.opcode == "tuple":
            first = _behind(computation, made.operands[index])
        return -(-(bounds[0] - (_number(first) or 0)) // _step(module, body, index))
    inside = [*condition.ops.values()]
    called = [module.computations.get(n) for o in inside for n in o.called]
    inside += [o for inner in called if inner is not None for o in inner.ops.values()]
    simple = {o.opcode for o in inside} <= {
        "parameter", "constant", "get-tuple-element", "compare", "fusion"
    }  # fmt: skip
    ways = [o.attribute("direction") for o in inside if o.opcode == "compare"]
    numbers = [n for o in inside if (n := _number(o)) is not None]
    return numbers[0] if simple and ways == ["LT"] and len(numbers) == 1 else None


def _behind(computation: Computation, name: str) -> Op | None:
    """The operation of that name, or what it only copies."""
    op = computation.ops.get(name)
    while op is not None and op.opcode in ("copy", "bitcast"):
        op = computation.ops.get(op.operands[0])
    return op


def _number(op: Op | None) -> int | None:
    return (
        int(op.attributes) if op and op.opcode == "constant" and op.attributes.isdigit() else None
    )


def _step(module: Module, body: Computation, index: int) -> int:
    """What a turn of a loop adds to element `index` of its tuple; 1 where that cannot be read."""
    if body.root.opcode != "tuple":
        return 1
    step, op = 0, _behind(body, body.root.operands[index])
    while op is not None and op.opcode in ("add", "fusion"):
        inner = module.computations.get(op.called[0]) if op.opcode == "fusion" else None
        total = inner.root if inner else op
        parts = [_behind(inner or body, n) for n in total.operands] if total.opcode == "add" else []
        more = [n for x in parts if (n := _number(x)) is not None]
        rest = [x for x in parts if _number(x) is None]
        if len(more) != 1 or len(rest) != 1:
            return 1
        step, given = step + more[0], rest[0]
        if inner and given is not None and given.opcode == "parameter":
            given = _behind(body, op.operands[int(given.attributes)])
        op = given
    return step or 1


# -- operations ----------------------------------------------------------------------------------


def flops(module: Module, computation: Computation, op: Op) -> float:
    """Operations of a product, a convolution, or a fusion of them; 0 for anything else."""
    if op.opcode == "dot":
        left = computation.ops[op.operands[0]].arrays[0]
        dims = [int(d) for d in re.findall(r"\d+", op.attribute("lhs_contracting_dims"))]
        inner = math.prod(left.shape[d] for d in dims)
        return 2.0 * math.prod(op.arrays[0].shape) * inner
    if op.opcode == "convolution":
        return _convolution(computation, op)
    if op.opcode == "custom-call" and "__cublas" in op.attributes:  # of a GPU
        left = computation.ops[op.operands[0]].arrays[0]
        dims = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', op.attributes)
        inner = math.prod(left.shape[int(d)] for d in re.findall(r"\d+", dims[1] if dims else ""))
        return 2.0 * math.prod(op.arrays[0].shape) * inner
    if op.opcode == "custom-call" and "__cudnn$conv" in op.attributes:
        return _convolution(computation, op)
    if op.opcode == "custom-call" and fused.SCOPE in op.attributes:
        return _kernel(computation, op)
    if op.opcode in ("fusion", "call", "async-start"):
        return sum(
            flops(module, inner, o)
            for n in op.called
            if (inner := module.computations.get(n)) is not None
            for o in inner.ops.values()
        )
    return 0.0


# Products over the pairs of a query and a key in the kernels of splash attention: logits and
# outputs; logits again, and gradients of weights and queries; the same of weights, keys and values
_PRODUCTS = {"_fwd": 2, "_dq": 3, "_dkv": 4}


def _kernel(computation: Computation, op: Op) -> float:
    """A kernel of mg_jax/fused.py; its first operand of floating point is the queries [...,T,H]."""
    given = (a for n in op.operands for a in computation.ops[n].arrays)
    queries = next(a.shape for a in given if "f" in a.dtype and len(a.shape) > 2)
    pairs = int(op.attributes.split(fused.SCOPE)[1].partition("/")[0])
    products = next(n for kind, n in _PRODUCTS.items() if f"splash_mha{kind}" in op.attributes)
    return 2.0 * products * math.prod(queries[:-2]) * queries[-1] * pairs


def _convolution(computation: Computation, op: Op) -> float:
    """As XLA counts: places where padding, or the gaps of a dilation, are multiplied do not
    count; products of batches are written as such on a TPU."""
    left, right = (computation.ops[n].arrays[0].shape for n in op.operands[:2])
    lhs, rest = op.attribute("dim_labels").split("_")
    rhs, out = rest.split("->")
    window = op.attribute("window")

    def sizes(name: str, default: int) -> list[list[int]]:
        found = re.search(rf"\b{name}=([\d_x\-]+)", window)
        count = sum(c.isdigit() for c in lhs)
        if not found:
            return [[default, default]] * count
        return [[int(n) for n in re.findall(r"-?\d+", part)] for part in found[1].split("x")]

    kernel, stride, pad = sizes("size", 1), sizes("stride", 1), sizes("pad", 0)
    spread, gaps = sizes("lhs_dilate", 1), sizes("rhs_dilate", 1)
    made = op.arrays[0].shape
    total = float(left[lhs.index("b")]) * made[out.index("f")] * right[rhs.index("i")]
    groups = int(op.attribute("batch_group_count") or 1)
    for i, digit in enumerate(c for c in sorted(lhs) if c.isdigit()):
        total *= _places(
            made[out.index(digit)], left[lhs.index(digit)], kernel[i][0], stride[i][0], pad[i][0],
            spread[i][0], gaps[i][0],
        )  # fmt: skip
    return 2.0 * total / groups


@functools.lru_cache(maxsize=4096)
def _places(out: int, size: int, kernel: int, stride: int, low: int, spread: int, gap: int) -> int:
    """(output position, kernel position) pairs that meet an element of the input."""
    reach, count = (size - 1) * spread + 1, 0
    for k in range(kernel):
        # positions o with 0 <= o * stride + k * gap - low < reach, on the grid of `spread`
        shift = k * gap - low
        first = max(0, -(shift // stride)) if shift < 0 else 0
        last = min(out - 1, (reach - 1 - shift) // stride)
        if last < first:
            continue
        step = spread // math.gcd(spread, stride)
        start = next((o for o in range(first, min(first + step, last + 1))
                      if (o * stride + shift) % spread == 0), None)  # fmt: skip
        if start is not None:
            count += (last - start) // step + 1
    return count

"""How long a compiled program takes at least on a chip: a roofline over its operations.

Every computation that runs by itself (the entry, and each loop's body as often as it turns, or once
and noted where only the data tell) takes
max(operations / peak, bytes / bandwidth); collectives take what their links need, less what the
schedule computes between their start and their end. What is left out: launching, waiting for the
slowest device, vector arithmetic that is slower than the memory, and tiles that are not full.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from launch.aot import hlo
from mg_jax.chips import Chip

FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "copy-done", "async-done", "async-update", "add-dependency",
    "send-done", "recv-done", "all-gather-done", "all-reduce-done", "collective-permute-done",
    "domain", "iota",
}  # fmt: skip
SLICES = ("dynamic-slice", "slice", "gather")
HOST = 5  # memory space of an array
VIEWS = ("bitcast", "copy", "convert", "reshape", "transpose")


@dataclasses.dataclass
class Program:
    """A computation that runs `times` times; operations and bytes of one run, in seconds what the
    two take, and what its collectives add."""

    name: str
    times: int
    flops: float = 0.0
    bytes: float = 0.0
    wire_seconds: float = 0.0
    by_operation: float = 0.0  # sum over operations of the larger of both: an upper estimate

    def seconds(self, chip: Chip) -> float:
        """Of all runs."""
        inside = max(self.flops / chip.flops, self.bytes / chip.bandwidth)
        return self.times * (inside + self.wire_seconds)


@dataclasses.dataclass
class Estimate:
    """Of one device: programs, collectives as {kind: (how many, bytes)}, and the names of the
    programs that count once though the data decide how often they run."""

    chip: Chip
    programs: list[Program]
    collectives: dict[str, tuple[int, float]]
    unknown_trips: list[str]

    @property
    def flops(self) -> float:
        return sum(p.times * p.flops for p in self.programs)

    @property
    def bytes(self) -> float:
        return sum(p.times * p.bytes for p in self.programs)

    @property
    def seconds(self) -> float:
        """Of one step."""
        return sum(p.seconds(self.chip) for p in self.programs)

    @property
    def wire_seconds(self) -> float:
        """Part of it in which nothing but a collective runs."""
        return sum(p.times * p.wire_seconds for p in self.programs)

    @property
    def by_operation(self) -> float:
        """Seconds if no two operations shared the chip; the truth lies between."""
        return sum(p.times * (p.by_operation + p.wire_seconds) for p in self.programs)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the programs that take the most time first."""
        ranked = sorted(self.programs, key=lambda p: -p.seconds(self.chip))
        return {
            "flops": self.flops,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "collective_seconds": self.wire_seconds,
            "seconds_by_operation": self.by_operation,
            "collectives": {
                kind: {"count": n, "bytes": size} for kind, (n, size) in self.collectives.items()
            },
            "programs": [
                {"name": p.name, "times": p.times, "flops": p.flops, "bytes": p.bytes,
                 "seconds": p.seconds(self.chip)}
                for p in ranked
            ],
            "unknown_trips": self.unknown_trips,
        }  # fmt: skip


def counters(found: Any) -> dict[str, float]:
    """The compiler's own counters, which take a loop once. Raises ValueError for a negative one:
    then none of them, nor an estimate, can be believed. What it calls optimal seconds is dropped.
    """
    found = found[0] if isinstance(found, (list, tuple)) else found
    kept = {k: float(v) for k, v in dict(found or {}).items() if "optimal_seconds" not in k}
    if negative := {k: v for k, v in kept.items() if v < 0}:
        raise ValueError(f"the compiler's counters are negative: {negative}")
    return {k: kept[k] for k in ("flops", "bytes accessed") if k in kept}


def estimate(text: str, chip: Chip, counted: Any = None) -> Estimate:
    """The roofline of a compiled program's text. Raises ValueError for negative counters, and for
    a program that moves arrays to or from the host's memory: how fast that goes is no property of
    the chip."""
    if counted is not None:
        counters(counted)
    module = hlo.parse(text)
    if uses_host(module):
        raise ValueError(
            "arrays move between the device's memory and the host's (config.optim.offload), over a "
            "link whose speed is not published for every chip"
        )
    walk = _Walk(module, chip)
    walk.run(module.entry, 1)
    return Estimate(chip, walk.programs, walk.collectives, walk.unknown)


class _Walk:
    def __init__(self, module: hlo.Module, chip: Chip):
        self.module, self.chip = module, chip
        self.programs: list[Program] = []
        self.collectives: dict[str, tuple[int, float]] = {}
        self.unknown: list[str] = []

    def run(self, computation: hlo.Computation, times: int, into: Program | None = None) -> None:
        program = into or Program(computation.name, times)
        if into is None:
            self.programs.append(program)
        open_: dict[str, float] = {}  # collectives on their way: seconds still to go
        for op in computation.ops.values():
            before = program.by_operation
            self._op(computation, op, program, open_)
            spent = program.by_operation - before
            for name in open_:  # one after the other: links are shared
                used = min(spent, open_[name])
                open_[name], spent = open_[name] - used, spent - used
        program.wire_seconds += sum(open_.values())

    def _op(self, computation, op, program, open_) -> None:
        if op.opcode == "while":
            body = self.module.computations[op.attribute("body").lstrip("%")]
            times = hlo.trips(self.module, computation, op)
            if times is None:
                self.unknown.append(body.name)
            self.run(body, program.times * (1 if times is None else times))
            return
        if op.opcode in ("call", "conditional"):
            name = op.called[0] if op.opcode == "call" else self._dearest(op.called)
            self.run(self.module.computations[name], program.times, program)
            return
        if (moved := collective(self.module, computation, op)) is not None:
            self._collective(op, moved, program, open_)
        elif op.opcode.endswith("-done"):
            for name in op.operands:
                program.wire_seconds += open_.pop(name, 0.0)
        if op.opcode in FREE or op.opcode.removesuffix("-start") in hlo.COLLECTIVES:
            return
        flops, size = hlo.flops(self.module, computation, op), traffic(self.module, computation, op)
        program.flops += flops
        program.bytes += size
        program.by_operation += max(flops / self.chip.flops, size / self.chip.bandwidth)

    def _dearest(self, branches: Sequence[str]) -> str:
        """Of a conditional's branches the one that takes longest: the data decide which runs."""
        took = {}
        for name in branches:
            walk = _Walk(self.module, self.chip)
            walk.run(self.module.computations[name], 1)
            took[name] = sum(p.times * (p.by_operation + p.wire_seconds) for p in walk.programs)
        return max(took, key=took.__getitem__)

    def _collective(self, op, moved: "Moved", program, open_) -> None:
        name = moved.channel if moved.part else op.name
        if moved.part in ("on the way", "end") and name in open_:
            if moved.part == "end":
                program.wire_seconds += open_.pop(name)
            return
        seconds = wire_time(moved.kind, moved.size, moved.devices, self.chip)
        count, total = self.collectives.get(moved.kind, (0, 0.0))
        times = program.times
        self.collectives[moved.kind] = count + times, total + times * moved.size
        if op.opcode.endswith("-start") or moved.part == "start":
            open_[name] = seconds
        else:
            program.wire_seconds += seconds


# -- collectives ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Moved:
    """What a collective sends: bytes that a device has before or after it, whichever is more, in a
    group of `devices`. A TPU program may spread one over several fusions of a `channel`, whose
    `part` is "start", "on the way" or "end"."""

    kind: str
    size: float
    devices: int
    channel: str = ""
    part: str = ""


def collective(module: hlo.Module, computation: hlo.Computation, op: hlo.Op) -> Moved | None:
    """What an operation sends, in a fusion too; None when nothing."""
    kind = op.opcode.removesuffix("-start")
    if kind in hlo.COLLECTIVES:
        made = op.size
        given = sum(computation.ops[n].size for n in op.operands if n in computation.ops)
        if op.opcode.endswith("-start"):  # its type holds what it was given as well
            made = max(made - given, given)
        group = group_size(op, module.devices)
        return Moved(kind, max(made, given), group, op.attribute("channel_id"))
    if op.opcode in ("fusion", "async-start"):
        for name in op.called:
            inner = module.computations.get(name)
            for o in inner.ops.values() if inner else ():
                if (found := collective(module, inner, o)) is not None:
                    return _part(inner, op, found)
    return None


def _part(inner: hlo.Computation, op: hlo.Op, moved: Moved) -> Moved:
    if "all-reduce-scatter" in inner.name:
        return dataclasses.replace(moved, kind="reduce-scatter")
    calls = [o.attributes for o in inner.ops.values() if o.opcode == "custom-call"]
    if any("AsyncCollectiveStart" in c for c in calls):
        return dataclasses.replace(moved, part="start")
    if any("AsyncCollectiveDone" in c for c in calls):
        return dataclasses.replace(moved, part="end")
    return dataclasses.replace(moved, part="on the way" if op.opcode == "fusion" else "")


def group_size(op: hlo.Op, all_of_them: int = 2) -> int:
    """Devices that take part in one instance of a collective: all of the program's where it names
    none, as in `replica_groups={}`."""
    groups = op.attribute("replica_groups")
    if groups.startswith("mesh["):  # mesh['a'=2,'b'=4] {'a'}
        sizes, _, named = groups.partition("]")
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
        return math.prod(axes[n] for n in re.findall(r"'([^']+)'", named) if n in axes)
    if groups.startswith("[") and (sizes := re.match(r"\[(\d+),(\d+)\]", groups)):
        return int(sizes[2])
    first = groups.lstrip("{").partition("}")[0]
    return max(2, first.count(",") + 1) if first else max(2, all_of_them)


def wire_time(kind: str, size: float, devices: int, chip: Chip) -> float:
    """Seconds of a ring over `devices` that sends both ways (scaling book, "sharded matrices").

    `size` is of an all-gather, reduce-scatter or all-reduce the whole, which passes every device
    once, twice for an all-reduce; of an all-to-all what one device holds, of which a part for each
    other goes the shorter way round, or once through the switch; a permute goes over one link.
    """
    if kind == "collective-permute":
        return size / chip.link
    part = (devices - 1) / devices
    if kind in ("all-to-all", "ragged-all-to-all") and chip.axes > 1:
        part = (devices**2 // 4) / devices  # all the shorter ways from one device together
    return (2 if kind == "all-reduce" else 1) * part * size / chip.wire


def uses_host(module: hlo.Module) -> bool:
    """Whether operations take or make arrays in the host's memory, as copies from there do."""
    return any(
        a.space == HOST
        for computation in module.computations.values()
        for o in computation.ops.values()
        if o.opcode not in FREE
        for a in o.arrays
    )


# -- memory traffic ------------------------------------------------------------------------------


def traffic(module: hlo.Module, computation: hlo.Computation, op: hlo.Op) -> float:
    """Bytes between the device's memory and the chip: of a slice what is cut out, of an update in
    place what is written; what the compiler keeps on the chip costs nothing."""
    given = [computation.ops[n] for n in op.operands if n in computation.ops]
    if op.opcode in SLICES:
        return 2 * _far(op)
    if op.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * sum(_far(o) for o in given[1:])
    if op.opcode.endswith("-start"):  # a copy to or from the chip's own memory, or an async slice
        inner = _inner(module, op)
        if inner is not None and inner.root.opcode in SLICES:
            return _far(inner.root)
        return sum(_far(o) for o in given) or sum(a.size for a in op.arrays[:1] if not a.space)
    inner = _inner(module, op)
    if inner is None:
        return sum(_far(o) for o in given) + _far(op)
    read = 0.0
    for parameter, o in zip(inner.parameters, given, strict=False):
        if whole := _far(o):
            width = whole / max(1, sum(math.prod(a.shape) for a in o.arrays))
            read += min(whole, width * _read(module, inner, parameter.name))
    return read + _written(module, inner, op)


def _inner(module: hlo.Module, op: hlo.Op) -> hlo.Computation | None:
    return next((module.computations[n] for n in op.called if n in module.computations), None)


def _far(op: hlo.Op) -> float:
    return sum(a.size for a in op.arrays if not a.space)


def _read(module: hlo.Module, inner: hlo.Computation, name: str) -> float:
    """Elements of `name` that a fusion reads, infinite for all of them: inside a fusion only what
    is asked for is computed, so that of a slice of a converted copy only the slice is read."""
    total = 0.0
    for o in inner.ops.values():
        if name not in o.operands:
            continue
        if o.opcode in SLICES and o.operands[0] == name:
            total += sum(math.prod(a.shape) for a in o.arrays)
        elif o.opcode in ("dynamic-update-slice", "scatter") and o.operands[0] == name:
            continue  # written in place
        elif o.opcode in VIEWS and not o.root:
            total += _read(module, inner, o.name)
        elif o.opcode == "fusion" and (nested := _inner(module, o)) is not None:
            for parameter, given in zip(nested.parameters, o.operands, strict=False):
                if given == name:
                    inside = _read(module, nested, parameter.name)
                    view = nested.root.opcode in VIEWS and math.isinf(inside) and not o.root
                    total += _read(module, inner, o.name) if view else inside
        else:
            return math.inf
    return total


def _written(module: hlo.Module, inner: hlo.Computation, op: hlo.Op) -> float:
    if inner.root.opcode == "fusion" and (nested := _inner(module, inner.root)) is not None:
        return _written(module, nested, op)
    roots = [inner.root]
    if inner.root.opcode == "tuple":
        roots = [inner.ops[n] for n in inner.root.operands]
    if len(roots) != len(op.arrays):
        return _far(op)
    total = 0.0
    for root, array in zip(roots, op.arrays, strict=True):
        while root.opcode == "bitcast" and root.operands[0] in inner.ops:
            root = inner.ops[root.operands[0]]
        if array.space:
            continue
        if root.opcode in ("dynamic-update-slice", "scatter"):
            update = inner.ops.get(root.operands[1 if root.opcode[0] == "d" else 2])
            total += min(array.size, 2 * update.size) if update else array.size
        else:
            total += array.size
    return total


def largest(text: str, count: int = 8) -> list[Mapping[str, Any]]:
    """The largest arrays that a program makes, each shape once: {bytes, array, made by, times}."""
    module = hlo.parse(text)
    found: dict[tuple, dict[str, Any]] = {}
    for computation in module.computations.values():
        if "fused" in computation.name:
            continue
        for op in computation.ops.values():
            if op.opcode in FREE - {"parameter"} or len(op.arrays) != 1 or op.arrays[0].space:
                continue
            array = op.arrays[0]
            key = (array.dtype, array.shape)
            label = re.search(r'op_name="([^"]*)"', op.attributes)
            row = found.setdefault(key, {
                "bytes": array.size, "array": f"{array.dtype}{list(array.shape)}",
                "made_by": (label[1] if label else op.opcode)[-100:], "count": 0,
            })  # fmt: skip
            row["count"] += 1
    return sorted(found.values(), key=lambda r: -r["bytes"])[:count]

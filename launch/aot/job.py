"""One compilation and its report; and, where a program does not fit, what to try instead."""

import dataclasses
import importlib.metadata
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from launch.aot import estimate, programs, slices
from mg_jax import sharding
from mg_jax.chips import CHIPS, Chip
from mg_jax.errors import UserError
from mg_jax.nn import QUANTS

_TOO_BIG = re.compile(r"RESOURCE_EXHAUSTED|[Rr]an out of memory|[Ee]xceeded .* capacity")
RESERVED = 2**28  # bytes of a TPU that the runtime keeps: a v5e has 15.75 GiB for programs
RESERVED_GPU = 0.1  # share of a GPU for CUDA and its libraries
# axes that the arrays of a program are split over; the others, as parameters are, over the last two
SPLIT = {"batch": ("data", "fsdp"), "cache": sharding.MESH_AXES}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def mesh_sizes(text: str | None, config: Any) -> dict[str, int]:
    """Sizes of "data=1,fsdp=32,tensor=1", where fsdp gets the rest if nothing is said of it; those
    of the config without a text. Raises UserError."""
    if not text:
        return dict(config.mesh.to_dict())
    sizes = {"data": 1, "fsdp": -1, "tensor": 1}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key not in sizes or not re.fullmatch(r"-1|[1-9]\d*", value):
            raise UserError(f"--mesh {text}: write data=1,fsdp=-1,tensor=1, where -1 is the rest")
        sizes[key] = int(value)
    if "=-1" in text and "fsdp" not in text:
        sizes["fsdp"] = 1
    return sizes


def compile_for(
    config: Any, topology: str, mesh: Mapping[str, int], kind: str, hlo: str = "", **options: Any
) -> dict[str, Any]:
    """Compile one program for a slice; what the compiler says of it, and the estimate.

    `hlo`: file for the text of the compiled program. Raises UserError for what cannot be lowered.
    A program that does not fit has `fits` False and the compiler's two totals.
    """
    found = slices.devices(topology)
    grid = sharding.make_mesh(**mesh, devices=found)
    program = programs.lowered(config, grid, kind, **options)
    report: dict[str, Any] = {
        "system": config.system, "stage": config.stage, "size": config.size, "program": kind,
        "topology": topology, "devices": len(found),
        "mesh": {k: int(v) for k, v in grid.shape.items()},
        **program.settings,
        "replicated": [
            line for group, tree in program.arrays.items()
            for line in sharding.unsplit({group: tree}, SPLIT.get(group, ("fsdp", "tensor")))
        ],
        "versions": {p: version(p) for p in ("jax", "jaxlib", slices.compiler(topology), "flax")},
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    begin = time.perf_counter()
    lowered = program.lower()
    report["lower_seconds"] = round(time.perf_counter() - begin, 1)
    begin = time.perf_counter()
    try:
        compiled = lowered.compile(slices.compiler_options(topology))
    except Exception as e:
        if not _TOO_BIG.search(str(e)):
            raise
        return report | {
            "fits": False,
            "compile_seconds": round(time.perf_counter() - begin, 1),
            "hbm": slices.chip(topology).memory,
            **totals(str(e)),
        }
    report["compile_seconds"] = round(time.perf_counter() - begin, 1)
    if hlo:
        Path(hlo).write_text(compiled.as_text(), encoding="utf-8")
    chip = slices.chip(topology)
    kept = RESERVED_GPU * chip.memory if slices.is_gpu(topology) else RESERVED
    report |= measure(compiled, chip.memory - kept) | {"hbm": chip.memory}
    if reason := withheld(kind, chip):
        return report | {"estimate": None, "estimate_failed": reason}
    return report | timed(compiled, chip, len(found), program.model_flops())


def withheld(kind: str, chip: Chip) -> str:
    """Why nothing is said of the time of a program; "" where something is."""
    if kind == "answer":
        return "how long an answer gets is not known before"
    if chip is CHIPS["t4"]:
        return "a T4 computes bfloat16 by way of float32, of which its peak says nothing"
    return ""


def measure(compiled: Any, room: float) -> dict[str, Any]:
    """Memory of one device; room: bytes that a program may take."""
    memory = compiled.memory_analysis()
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
    temporary, shared = memory.temp_size_in_bytes, memory.alias_size_in_bytes
    peak = arguments + outputs - shared + temporary
    return {
        "fits": peak <= room,
        "bytes": {
            "arguments": arguments, "outputs": outputs, "shared": shared, "temporaries": temporary,
            "host": getattr(memory, "host_argument_size_in_bytes", 0), "peak": peak,
        },
    }  # fmt: skip


def timed(compiled: Any, chip: Chip, devices: int, model_flops: float) -> dict[str, Any]:
    """Counters and the roofline of a compiled program.

    The share of the peak (`mfu`) counts the operations of the model alone, nothing recomputed. It
    is left out, with the reason, when the compiler's counters are negative or arrays move between
    the device and its host.
    """
    out: dict[str, Any] = {"model_flops": model_flops}
    try:
        out["compiler"] = estimate.counters(compiled.cost_analysis())
        found = estimate.estimate(compiled.as_text(), chip)
    except ValueError as e:
        return out | {"estimate": None, "estimate_failed": str(e)}
    out["estimate"] = found.as_dict()
    if found.seconds:
        out["mfu"] = model_flops / devices / chip.flops / found.seconds
        out["mfu_by_operation"] = model_flops / devices / chip.flops / found.by_operation
    return out


def totals(message: str) -> dict[str, Any]:
    """The compiler's two totals, used and available, of its complaint; and its first line."""
    number = r"([\d.]+)([KMGT]?)i?B?"
    forms = (
        rf"[Uu]sed {number} of {number} hbm",
        rf"\({number}\) exceeds available \w+ \({number}\)",
    )
    found = next((m for form in forms if (m := re.search(form, message))), None)
    first = next((x for x in message.splitlines() if _TOO_BIG.search(x)), message[:200])
    out: dict[str, Any] = {"complaint": first.strip()[:300]}
    if found:
        out["needed"] = float(found[1]) * _UNITS[found[2]]
        out["available"] = float(found[3]) * _UNITS[found[4]]
    return out


def buffers(
    config: Any, topology: str, mesh: Mapping[str, int], kind: str, **options: Any
) -> dict[str, Any] | None:
    """The largest arrays of the same program compiled for a slice with more memory, and which.

    `mesh`: its sizes, no -1. The program is the same for as many devices alone, so of a larger
    slice a part is taken. None where there is no such slice, the compiler does not take the part,
    or it does not fit there either.
    """
    other = slices.roomier(topology)
    if other is None:
        return None
    there, count = slices.devices(other), math.prod(mesh.values())
    grid = sharding.make_mesh(**mesh, devices=there[:count])
    try:
        lowered = programs.lowered(config, grid, kind, **options).lower()
        compiled = lowered.compile(slices.compiler_options(other))
    except Exception as e:
        if _TOO_BIG.search(str(e)) or count < len(there):
            return None
        raise
    where = f"{count} of the {len(there)} devices of {other}" if count < len(there) else other
    return {"compiled_for": where, "largest": estimate.largest(compiled.as_text())}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What to change of a program; what is None, 0 or "" stays as it is."""

    mesh: Mapping[str, int] | None = None
    rules: str = ""
    remat: str = ""
    accumulate: int = 0
    offload: bool = False
    quantize: str = ""

    @property
    def flags(self) -> str:
        """For launch.compile, behind those that it was given."""
        sizes = ",".join(f"{axis}={n}" for axis, n in (self.mesh or {}).items())
        values = {
            "mesh": sizes, "config.rules": self.rules, "remat": self.remat,
            "config.accumulate": self.accumulate, "config.optim.offload": self.offload,
            "quantize": self.quantize,
        }  # fmt: skip
        return " ".join(f"--{flag}={value}" for flag, value in values.items() if value)

    def of(self, config: Any) -> Any:
        """The config so changed, a copy."""
        new = config.copy_and_resolve_references()
        new.rules = self.rules or config.rules
        new.accumulate = self.accumulate or config.accumulate
        new.optim.offload = self.offload or config.optim.offload
        if self.remat:
            programs.set_remat(new, self.remat)
        if self.quantize:
            new.model.lm.quant = self.quantize
        return new


def alternatives(config: Any, mesh: Mapping[str, int], kind: str) -> Iterator[Setting]:
    """What to try in turn where a program does not fit on `mesh` (its sizes, no -1): one of a kind,
    that which saves most, and the cheapest in speed first. Each has what the ones before it have,
    but that a tensor axis is tried without moments in host memory, and then with them."""
    count = math.prod(mesh.values())
    if kind != "train":
        found = Setting()
        split = {"data": 1, "fsdp": 1, "tensor": count}
        if dict(mesh) != split:
            yield (found := Setting(mesh=split))
        for quantize in QUANTS[QUANTS.index(config.model.lm.quant) + 1 :]:
            yield dataclasses.replace(found, quantize=quantize)
        return
    found, sizes = Setting(), dict(mesh)
    whole = {"data": 1, "fsdp": count, "tensor": 1}
    idle = sizes != whole or config.rules == "replicated"
    if count > 1 and idle and config.batch_size % count == 0:
        sizes = whole
        yield (found := Setting(mesh=whole, rules="fsdp"))
    if set(re.findall(r"=(\w+)", programs.remats_of(config))) - {"full"}:
        yield (found := dataclasses.replace(found, remat="full"))
    most = config.batch_size // (sizes["data"] * sizes["fsdp"])
    if most > config.accumulate:
        yield (found := dataclasses.replace(found, accumulate=most))
    if not config.optim.offload:
        yield dataclasses.replace(found, offload=True)
    if (wide := next(_with_tensor(config, found, count, 8), None)) and wide.mesh != sizes:
        yield wide
        if not config.optim.offload:
            yield dataclasses.replace(wide, offload=True)


def _with_tensor(config: Any, setting: Setting, count: int, most: int) -> Iterator[Setting]:
    """The setting on meshes with a tensor axis of at most so many, the largest first, a row at a
    time."""
    for tensor in (8, 4, 2):
        ways = count // tensor
        even = count % tensor == 0 and config.model.lm.heads % tensor == 0
        if tensor <= most and even and config.batch_size % ways == 0:
            yield dataclasses.replace(
                setting, mesh={"data": 1, "fsdp": ways, "tensor": tensor}, rules="fsdp_tensor",
                accumulate=config.batch_size // ways,
            )  # fmt: skip


def cheaper(config: Any, setting: Setting) -> Iterator[Setting]:
    """Of a setting that fits, those of its kind that cost less speed, each needing more memory than
    the one before: a smaller tensor axis, or else half as many micro-batches."""
    mesh = setting.mesh or {}
    if (tensor := mesh.get("tensor", 1)) > 1:
        yield from _with_tensor(config, setting, math.prod(mesh.values()), tensor // 2)
        return
    parts = setting.accumulate
    while parts % 2 == 0 and parts // 2 > config.accumulate:
        parts //= 2
        yield dataclasses.replace(setting, accumulate=parts)


def search(
    config: Any, topology: str, mesh: Mapping[str, int], kind: str, tries: int,
    say: Callable[[str], None], **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Settings that were tried for a program that does not fit: `tried`; the `advice` is the flags
    of the cheapest that fits, and `untried` how many were left without one. `say` gets the flags of
    each before it is compiled."""
    tried: list[dict[str, Any]] = []

    def fits(setting: Setting) -> bool:
        say(setting.flags)
        grid = setting.mesh or mesh
        report = compile_for(setting.of(config), topology, grid, kind, **options)
        needed = report.get("needed", report.get("bytes"))
        tried.append({"setting": setting.flags, "fits": report["fits"], "needed": needed})
        return bool(report["fits"])

    kinds = list(alternatives(config, mesh, kind))
    found = next((setting for setting in kinds[:tries] if fits(setting)), None)
    if found is None:
        return {"tried": tried, "untried": len(kinds) - len(tried)}
    for setting in cheaper(config, found):
        if len(tried) >= tries or not fits(setting):
            break
        found = setting
    return {"tried": tried, "advice": found.flags}


def version(package: str) -> str:
    """Version of an installed package, "" if it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""

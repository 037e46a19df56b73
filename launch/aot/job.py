"""One compilation and its report; and, where a program does not fit, what to try instead."""

import importlib.metadata
import math
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launch.aot import estimate, programs, slices
from mg_jax import sharding
from mg_jax.chips import CHIPS, Chip
from mg_jax.errors import UserError

_TOO_BIG = re.compile(r"RESOURCE_EXHAUSTED|[Rr]an out of memory|[Ee]xceeded .* capacity")
RESERVED = 2**28  # bytes of a TPU that the runtime keeps: a v5e has 15.75 GiB for programs
RESERVED_GPU = 0.1  # share of a GPU for CUDA and its libraries
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
    compiler = "jax-cuda12-plugin" if slices.is_gpu(topology) else "libtpu"
    report: dict[str, Any] = {
        "system": config.system, "stage": config.stage, "size": config.size, "program": kind,
        "topology": topology, "devices": len(found),
        "mesh": {k: int(v) for k, v in grid.shape.items()},
        **program.settings,
        "replicated": sharding.unsplit(dict(program.arrays)) if grid.size > 1 else [],
        "versions": {p: version(p) for p in ("jax", "jaxlib", compiler, "flax")},
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
    is left out, with the reason, when the compiler's counters are negative.
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


def alternatives(config: Any, topology: str, mesh: Mapping[str, int], kind: str) -> Iterator:
    """(what changes, config, mesh) to try in turn: the cheapest in speed first."""
    generation, sides = slices.parse(topology)
    count = math.prod(sides) * (2 if generation == "7x" else 1)
    if kind != "train":
        for rules, sizes in (("fsdp_tensor", {"data": 1, "fsdp": 1, "tensor": count}),):
            if dict(mesh) != sizes or config.rules != rules:
                yield describe(sizes, rules), _changed(config, rules=rules), sizes
        return
    whole = {"data": 1, "fsdp": count, "tensor": 1}
    if dict(mesh) != whole and config.batch_size % count == 0:
        yield describe(whole, "fsdp"), _changed(config, rules="fsdp"), whole
    if set(re.findall(r"=(\w+)", programs.remats_of(config))) != {"full"}:
        yield "remat full in all parts", _changed(config, remat="full"), mesh
    ways = mesh["data"] * mesh["fsdp"] if -1 not in mesh.values() else count
    rows = config.batch_size // ways
    for parts in (2, 4, 8, 16, 32):
        if parts > config.accumulate and rows % parts == 0:
            yield f"accumulate={parts}", _changed(config, remat="full", accumulate=parts), mesh
    most = max(1, rows)
    yield (
        f"accumulate={most}, moments in host memory",
        _changed(config, remat="full", accumulate=most, offload=True),
        mesh,
    )
    for tensor in (2, 4, 8):
        if count % tensor == 0 and config.model.lm.heads % tensor == 0:
            sizes = {"data": 1, "fsdp": count // tensor, "tensor": tensor}
            if config.batch_size % (count // tensor):
                continue
            most = config.batch_size // (count // tensor)
            yield (
                f"{describe(sizes, 'fsdp_tensor')}, accumulate={most}",
                _changed(config, rules="fsdp_tensor", remat="full", accumulate=most),
                sizes,
            )


def describe(sizes: Mapping[str, int], rules: str) -> str:
    """Flags that set a mesh and its rules."""
    return f"--mesh={','.join(f'{k}={v}' for k, v in sizes.items())} --config.rules={rules}"


def _changed(config: Any, *, remat: str = "", offload: bool = False, **values: Any) -> Any:
    new = config.copy_and_resolve_references()
    for key, value in values.items():
        new[key] = value
    if remat:
        programs.set_remat(new, remat)
    new.optim.offload = offload or new.optim.offload
    return new


def version(package: str) -> str:
    """Version of an installed package, "" if it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""

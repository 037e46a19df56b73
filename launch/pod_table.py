"""The table of docs/pods_table.md: the smallest slice that each stage fits.

    python -m launch.pod_table [--rows REGEX] [--chips v5e,v5p,v6e] [--hours 8]

Every stage of every system at its published sizes, and serving, compiled by launch.compile for the
slices that are sold. A row is one JSON file in docs/pods, made once: the command goes on where it
stopped, and with nothing left to do it only writes the page. A compilation of a 7B takes minutes,
a row several of them. --check compiles one row again and says whether the bytes of its memory and
its operations are as noted.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import cli
from launch.aot import slices
from mg_jax import disk
from mg_jax.chips import CHIPS
from mg_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CHIPS_ASKED = ("v5e", "v5p", "v6e")
# config file -> (stages, sizes): a group of sizes for each language model, the first of all systems
# before the second of any; a size as the file's own argument says it
SYSTEMS: Mapping[str, tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]] = {
    "groma": (("detection", "alignment", "instruction"), (("size=7b,form=published",),)),
    "mg_llava": (
        ("pretrain", "sft"),
        tuple(
            (f"llm={llm},media=image", f"llm={llm},media=video")
            for llm in ("vicuna7b", "yi34b", "vicuna13b", "llama3", "phi3")
        ),
    ),
    "ferret": (("caption", "dense", "instruction"), (("size=7b",), ("size=13b",))),
    "tiny_grounding_gpt": (
        ("projector", "llm", "local", "global"),
        (("llm=qwen3b",), ("llm=qwen7b",), ("llm=qwen1.5b",)),
    ),
}  # fmt: skip
# Where a paper leaves the batch open: what is assumed here, printed under the table
ASSUMED = {
    "groma": "batches as published, of all devices: 64, then 128",
    "mg_llava": "batches as published with the weights where they differ from the paper's 256 and "
    "128: Phi-3 and Llama-3 sft 64, Yi pretrain 512; of all devices",
    "ferret": "the paper of v2 gives no batch: v1's 128 of all devices",
    "tiny_grounding_gpt": "the paper's 32 and 16 are most likely of one of its 8 devices, but it "
    "does not say so: taken as of all devices",
}
# rows of a device at a time: a larger product wastes less on moving parameters
AT_ONCE = (1, 2, 4, 8)
FAR = 2.0  # times its memory: a tensor axis may halve what a device holds, no more


def rows() -> Iterator[tuple[str, list[str]]]:
    """(name, flags of launch.compile) of every row whose config there is."""
    for rank in range(max(len(groups) for _, groups in SYSTEMS.values())):
        for system, (stages, groups) in SYSTEMS.items():
            if (ROOT / "configs" / f"{system}.py").is_file():
                for size in groups[rank] if rank < len(groups) else ():
                    yield from _rows(system, stages, size)


def _rows(system: str, stages: tuple[str, ...], size: str) -> Iterator[tuple[str, list[str]]]:
    short = re.sub(r"\w+=", "", size).replace(",", "-")
    for stage in stages:
        config = f"configs/{system}.py:stage={stage},{size}"
        yield f"{system}-{stage}-{short}", ["--config", config]
    served = f"configs/{system}.py:stage={stages[-1]},{size}"
    for program in ("prefill", "decode"):
        for batch in (1, 32):
            flags = ["--config", served, "--program", program, "--batch", str(batch)]
            yield f"{system}-{program}{batch}-{short}", flags
    for quant in ("int8", "int4") if "7b" in size else ():  # for one small device
        flags = ["--config", served, "--program", "answer", "--quantize", quant]
        yield f"{system}-answer1-{short}-{quant}", flags


def variants(flags: list[str], devices: int, batch_size: int) -> Iterator[list[list[str]]]:
    """What to try on a slice of so many devices, by mesh. For training: first without a tensor axis
    where there are rows enough; of each mesh the settings with fewest rows at a time first."""
    if "--program" in flags:
        yield [[]]
        return
    tensor = 1
    while devices // tensor > batch_size:
        tensor *= 2
    for share in (tensor, 2 * tensor):
        ways = devices // share
        if not ways or batch_size % ways:
            continue
        mesh = [f"--mesh=data=1,fsdp={ways},tensor={share}"]
        rules = "fsdp" if share == 1 else "fsdp_tensor"
        each = batch_size // ways
        yield [
            [*mesh, f"--config.rules={rules}", f"--config.accumulate={each // part}"]
            for part in AT_ONCE if each % part == 0
        ]  # fmt: skip


def compile_row(flags: list[str], topology: str, seconds: float) -> dict[str, Any]:
    """The report of launch.compile in a process of its own, so that its memory goes back; or only
    an `error`, which says nothing of whether it fits."""
    command = [sys.executable, "-m", "launch.compile", *flags, f"--topology={topology}", "--json",
               "--tries=0"]  # fmt: skip
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"not compiled within {seconds:.0f} s"}
    try:
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1][:300] if lines else f"code {done.returncode}"}
    return report | {"command": " ".join(["python", *command[1:-2]])}


def smallest(name: str, flags: list[str], generation: str, batch_size: int, folder: Path,
             seconds: float) -> None:  # fmt: skip
    """Make the row of a stage on a generation: from the smallest slice up, until one fits.

    No row is made, and the next call tries again, where on a slice nothing fits and with one of the
    settings something else went wrong.
    """
    path = folder / f"{name}-{generation}.json"
    if path.exists():
        return
    failed: list[dict[str, Any]] = []
    for size in slices.SOLD[generation]:
        topology = f"{generation}:{size}"
        devices = math.prod(int(n) for n in size.split("x")) * (2 if generation == "7x" else 1)
        if hopeless(flags, generation, devices):
            failed = [{"topology": topology, "fits": False,
                       "reason": "its parameters alone are more than its memory"}]  # fmt: skip
            continue
        smaller, wrong = failed[-1:], False

        def compiled(extra: list[str], topology: str = topology) -> dict[str, Any]:
            report = compile_row([*flags, *extra], topology, seconds)
            said = report.get("error") or ("fits" if report["fits"] else "does not fit")
            print(f"{name} {topology} {' '.join(extra)}: {said}", file=sys.stderr, flush=True)
            return report

        for settings in variants(flags, devices, batch_size):
            reports = fastest(settings, compiled)
            if fitting := [r for r in reports if r.get("fits")]:
                row = {"name": name, "chip": generation, **max(fitting, key=speed)}
                disk.write_json(path, row | {"failed": smaller})
                return
            wrong |= any("error" in r for r in reports)
            unfit = [r | {"topology": topology} for r in reports if "error" not in r]
            failed += unfit
            if any(map(far, unfit)):
                break
        if wrong:
            return
    row = {"name": name, "chip": generation, "fits": False, "failed": failed[-1:]}
    disk.write_json(path, row)


def fastest(
    settings: Sequence[list[str]], compiled: Callable[[list[str]], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Reports of those settings of a mesh among which the fastest that fits must be.

    They come with more rows at a time each. Where one fits, those that are sure to fit as well are
    passed over up to the last, which is faster; they are gone back to if it fails after all.
    """
    reports, todo, passed = [], list(settings), list[list[str]]()
    while todo:
        extra = todo.pop(0)
        report = compiled(extra)
        reports.append(report)
        fits = any(r.get("fits") for r in reports)
        if report.get("fits"):
            passed, most = [], accumulate(extra) / times_as_many(report)
            while len(todo) > 1 and accumulate(todo[1]) >= most:
                passed.append(todo.pop(0))
        elif passed:
            todo = [passed.pop(), *(todo if "error" in report else ())]
        elif "error" not in report:
            # more rows at a time take more; but a single batch holds one gradient, not two
            alone = [x for x in todo if accumulate(x) == 1]
            todo = [] if fits or far(report) else alone
    return reports


def accumulate(settings: list[str]) -> int:
    """Of one of `variants`: in how many parts a batch is computed."""
    return int(settings[-1].partition("=")[2]) if settings else 1


def times_as_many(report: Mapping[str, Any]) -> float:
    """How many times the rows of a program that fits would fit surely: as if all that it computes
    grew with them, which gradients do not."""
    if "bytes" not in report:
        return 1.0
    from launch.aot import job

    sizes = report["bytes"]
    room = report["hbm"] - job.RESERVED - sizes["peak"] + sizes["temporaries"]
    return float(room / max(sizes["temporaries"], 1))


def far(report: Mapping[str, Any]) -> bool:
    """Whether a program needs so much more than there is that no setting of a slice will help."""
    return bool(report.get("needed", 0) > FAR * report.get("available", math.inf))


def speed(report: Mapping[str, Any]) -> tuple[float, int]:
    """The larger the better: rows a second, of which each step has as many, if nothing overlapped;
    without an estimate the rows at a time, as a larger product wastes less."""
    seconds = (report.get("estimate") or {}).get("seconds_by_operation")
    return (1 / seconds if seconds else 0.0), -report.get("accumulate", 1)


def hopeless(flags: list[str], generation: str, devices: int) -> bool:
    """Whether parameters and moments, split evenly, are more than the memory: known without a
    compilation."""
    from launch.aot import weight

    given = dict(zip(flags[::2], flags[1::2], strict=True))
    program, quant = given.get("--program", "train"), given.get("--quantize", "none")
    held = weight.held(given["--config"], program, quant)
    return held / devices > CHIPS[generation].memory


def page(folder: Path) -> str:
    """The rows as a Markdown table."""
    found = [disk.read_json(p) for p in sorted(folder.glob("*.json"))]
    lines = [
        "# Which slice a stage fits",
        "",
        "Made by `python -m launch.pod_table`; docs/pods.md says what the columns mean. Programs",
        "compiled on a machine without these devices: memory is the compiler's, times are",
        "estimates, nothing here ran on one.",
        "",
        "| row | smallest slice | mesh | rows x accumulate | GiB of a device | step, ms "
        "| MFU, % | replicated, MB | one smaller | compiled |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found:
        bad = "; ".join(f"{f['topology']}: {why(f)}" for f in r["failed"]) or "none is sold"
        if not r["fits"]:
            lines.append(f"| {r['name']} | none of {r['chip']} | | | | | | | {bad} | |")
            continue
        mesh = " ".join(f"{k}={v}" for k, v in r["mesh"].items() if v > 1) or "1"
        e = r.get("estimate") or {}
        compiler = slices.compiler(r["topology"])
        times = f"{1e3 * e['seconds']:.0f} to {1e3 * e['seconds_by_operation']:.0f}" if e else ""
        mfu = r.get("estimate_failed", "")
        if "mfu" in r:
            mfu = f"{100 * r['mfu_by_operation']:.0f} to {100 * r['mfu']:.0f}"
        whole = sum(replicated_bytes(line) for line in r.get("replicated", ())) / 1e6
        lines.append(
            f"| {r['name']} | {r['topology']} | {mesh} | {r['rows']} x {r.get('accumulate', 1)} | "
            f"{r['bytes']['peak'] / 2**30:.1f} of {r['hbm'] / 2**30:.0f} | {times} | {mfu} "
            f"| {whole:.0f} | {bad} "
            f"| {r['date']}, jax {r['versions']['jax']}, {compiler} {r['versions'][compiler]} |"
        )
    systems = sorted({r["name"].split("-")[0] for r in found} & ASSUMED.keys())
    lines += ["", "Assumed:", "", *(f"- {s}: {ASSUMED[s]}" for s in systems)]
    return "\n".join(lines) + "\n"


def replicated_bytes(line: str) -> int:
    """Bytes of an array of which a line of `sharding.unsplit` speaks."""
    found = re.search(r"([\d,]+) bytes", line)
    return int(found[1].replace(",", "")) if found else 0


def why(report: Mapping[str, Any]) -> str:
    """Why a slice is too small, in a few words."""
    if "needed" in report:
        return f"{report['needed'] / 2**30:.1f} of {report['available'] / 2**30:.1f} GiB"
    return report.get("reason") or "does not fit"


def check(folder: Path, seconds: float) -> None:
    """Compile the row that took the least time again. Raises UserError when it is not as noted."""
    found = [disk.read_json(p) for p in folder.glob("*.json")]
    fitting = [r for r in found if r["fits"] and r.get("estimate")]
    if not fitting:
        raise UserError(f"{folder} has no row to check")
    row = min(fitting, key=lambda r: r["compile_seconds"])
    flags = [f for f in row["command"].split()[3:] if not f.startswith("--topology")]
    again = compile_row(flags, row["topology"], seconds)
    if "error" in again:
        raise UserError(f"{row['name']}: cannot be compiled any more: {again['error']}")
    if not again["fits"]:
        raise UserError(f"{row['name']}: {row['topology']} does not fit any more: {why(again)}")
    pairs = {
        "bytes": (row["bytes"]["peak"], again["bytes"]["peak"]),
        "flops": (row["estimate"]["flops"], again["estimate"]["flops"]),
    }
    for what, (a, b) in pairs.items():
        if abs(a - b) > 0.02 * a:
            raise UserError(f"{row['name']}: {what} {a:.4g} is noted, {b:.4g} found")
    print(f"{row['name']} on {row['topology']} is as noted")


def main(argv: list[str] | None = None) -> None:
    """Make what is missing, then write the page."""
    p = argparse.ArgumentParser(prog="python -m launch.pod_table", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("--rows", default="", metavar="REGEX", help="names of rows; default all")
    p.add_argument("--chips", default=",".join(CHIPS_ASKED), help="default %(default)s")
    p.add_argument("--hours", type=float, default=8.0, help="stop after them (default 8)")
    p.add_argument("--seconds", type=float, default=1800, help="of one compilation at most")
    p.add_argument("--folder", type=Path, default=ROOT / "docs" / "pods")
    p.add_argument("--check", action="store_true", help="compile one row again")
    args = p.parse_args(argv)
    if unknown := set(args.chips.split(",")) - set(slices.SOLD):
        raise UserError(f"--chips {', '.join(unknown)}: there are {', '.join(slices.SOLD)}")
    try:
        wanted = re.compile(args.rows)
    except re.error as e:
        raise UserError(f"--rows {args.rows!r}: is no regular expression ({e})") from None
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.check:
        return check(args.folder, args.seconds)
    end = time.monotonic() + 3600 * args.hours
    from launch.aot import weight

    for generation in args.chips.split(","):
        for name, flags in rows():
            if wanted.search(name) and time.monotonic() < end:
                batch = weight.batch_size(flags[1])
                smallest(name, flags, generation, batch, args.folder, args.seconds)
    out = args.folder.parent / f"{args.folder.name}_table.md"
    out.write_text(page(args.folder), encoding="utf-8")
    print(out)


if __name__ == "__main__":
    cli.run(main)

"""Compile a stage for TPUs or GPUs that are not there: does it fit, and how fast is it?

    python -m launch.compile --config configs/groma.py:stage=instruction,size=7b \\
        --topology v5e:4x8 [--mesh data=1,fsdp=32,tensor=1] [--json]
    python -m launch.compile --config configs/groma.py:stage=instruction,size=7b \\
        --topology v5e:1x1 --program decode --batch 1
    python -m launch.compile --config configs/groma.py:stage=instruction,size=7b \\
        --topology t4:1 --program decode --quantize int8

The program is the real one: train step (default), prefill, decode, or answer, which is both with
the loop between them as an Assistant runs it, and of which the memory alone is told. It is compiled
by libtpu for any slice of v4, v5e, v5p, v6e or 7x on a machine without a TPU: make setup EXTRAS=tpu
VENV=.venv-tpu; and by jax's CUDA plugin for some GPUs of one machine, t4, l4, a100, h100 or h200,
without one: make setup EXTRAS=gpu VENV=.venv-gpu.
A train step has the config's batch_size. Any --config.key=value of launch.train works here too, but
that what is no train step has an Assistant's rules (fsdp_tensor) and, without --mesh, a tensor axis
over all devices.

Printed: bytes of a device (arguments, temporaries, peak) against its memory; operations; bytes
moved; collectives; and a roofline estimate of the step with the share of the chips' peak that the
model's own operations make up (docs/pods.md says how, and how far to trust it). Where it does not
fit: the compiler's totals, the largest arrays, and flags to add with which it fits, found by trying
(--tries=0 leaves both out). Exit code 3 when it does not fit.
"""

import json
import sys
from pathlib import Path

from absl import flags

from launch import cli
from launch.config_flag import CONFIG
from mg_jax.errors import UserError

_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "generation:sides, as v5e:4x8 or v5p:2x2x2; GPU:number, as t4:1"
)
_MESH = flags.DEFINE_string("mesh", None, "sizes of the mesh, as data=1,fsdp=32,tensor=1")
_PROGRAM = flags.DEFINE_enum(
    "program", "train", ["train", "prefill", "decode", "answer"], "what to compile"
)
_BATCH = flags.DEFINE_integer("batch", 1, "rows of what is no train step", lower_bound=1)
_NEW = flags.DEFINE_integer("new_tokens", 256, "room for an answer", lower_bound=1)
_TEXT = flags.DEFINE_integer("text_tokens", 512, "text of a prompt", lower_bound=1)
_QUANT = flags.DEFINE_enum("quantize", "none", ["none", "int8", "int4"], "not to train")
_REMAT = flags.DEFINE_string("remat", None, "policy of all parts: none, dots or full")
_TRIES = flags.DEFINE_integer("tries", 6, "settings to try when it does not fit", lower_bound=0)
_JSON = flags.DEFINE_boolean("json", False, "print one JSON line")
_HLO = flags.DEFINE_string("hlo", "", "file for the text of the compiled program")
FULL = 3  # exit code: it does not fit
SHOWN = 5  # parts of a program in the text; the JSON has all


def main() -> int:
    """Parse the flags, compile, report; returns the exit code."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    rest = cli.parse_flags()
    if rest:
        raise UserError(f"{rest[0]!r} is not a flag: write --flag=value")
    for flag, example in ((CONFIG, "configs/groma.py:stage=instruction,size=7b"),
                          (_TOPOLOGY, "v5e:4x8")):  # fmt: skip
        if flag.value is None:
            raise UserError(f"--{flag.name} is missing: for example --{flag.name} {example}")
    import jax

    from launch.aot import job, programs, slices
    from mg_jax.assistant import SERVING

    slices.parse(_TOPOLOGY.value)
    if _HLO.value:
        file = Path(_HLO.value).absolute()
        if file.is_dir() or not file.parent.is_dir():
            raise UserError(f"--hlo {file}: name a file in a folder that is there")
    slices.quiet()
    jax.config.update("jax_platforms", "cpu")
    config, kind = CONFIG.value, _PROGRAM.value
    if _REMAT.value:
        programs.set_remat(config, _REMAT.value)
    options = {}
    if kind == "train" and _QUANT.value != "none":
        raise UserError("--quantize is not for train steps: integers do not learn")
    if kind != "train":
        config.model.lm.quant = _QUANT.value
        options = {"rows": _BATCH.value, "new_tokens": _NEW.value, "text_tokens": _TEXT.value}
        config.rules, mesh = SERVING, {"data": 1, "fsdp": 1, "tensor": -1}
    if kind == "train" or _MESH.value is not None:
        mesh = job.mesh_sizes(_MESH.value, config)
    report = job.compile_for(config, _TOPOLOGY.value, mesh, kind, _HLO.value, **options)
    if not report["fits"] and _TRIES.value:
        sizes = report["mesh"]
        report["roomier"] = job.buffers(config, _TOPOLOGY.value, sizes, kind, **options)
        report |= job.search(
            config, _TOPOLOGY.value, sizes, kind, _TRIES.value, trying, **options
        )  # fmt: skip
    print(json.dumps(report) if _JSON.value else table(report))
    return 0 if report["fits"] else FULL


def trying(flags: str) -> None:
    """Say what is compiled now, as it takes minutes."""
    if not _JSON.value:
        print(f"does not fit; trying {flags}", file=sys.stderr, flush=True)


def table(r: dict) -> str:
    """A report for people."""
    gib = 2**30
    mesh = " ".join(f"{k}={v}" for k, v in r["mesh"].items())
    lines = [
        f"{r['system']} {r['stage']} {r['size']}, {r['program']}: {r['rows']} rows, "
        f"{r['tokens']} tokens each",
        f"for {r['topology']} ({r['devices']} devices), mesh {mesh}, rules {r['rules']}; compiled "
        f"in {r['compile_seconds']:.0f} s",
        f"fits: {str(r['fits']).lower()}",
    ]
    if r["replicated"]:
        lines += ["large arrays that lie whole along an axis of the mesh that could split them:"]
        lines += [f"  {line}" for line in r["replicated"]]
    if "bytes" in r:
        b = {k: v / gib for k, v in r["bytes"].items()}
        lines.append(
            f"memory of a device: {b['peak']:.2f} of {r['hbm'] / gib:.1f} GiB (arguments "
            f"{b['arguments']:.2f}, temporaries {b['temporaries']:.2f})"
        )
    if "needed" in r:
        lines.append(
            f"the compiler needs {r['needed'] / gib:.2f} GiB of {r['available'] / gib:.2f}"
        )
    elif not r["fits"]:
        lines.append(f"the compiler says: {r.get('complaint', 'more than there is')}")
    if e := r.get("estimate"):
        lines += [
            f"a device computes {e['flops'] / 1e12:.2f} Tflop and moves {e['bytes'] / 1e9:.1f} GB",
            *(f"  {kind}: {c['count']} of {c['bytes'] / 1e9:.2f} GB together"
              for kind, c in e["collectives"].items()),
            f"at least {e['seconds'] * 1e3:.1f} ms (of it {e['collective_seconds'] * 1e3:.1f} ms "
            f"waiting for collectives), {e['seconds_by_operation'] * 1e3:.1f} ms if nothing "
            "overlaps",
            f"model flops utilization at most {100 * r['mfu']:.0f} %, "
            f"{100 * r['mfu_by_operation']:.0f} % if nothing overlaps",
        ]  # fmt: skip
        lines += loops(e)
    elif "estimate_failed" in r:
        lines.append(f"no estimate: {r['estimate_failed']}")
    if big := r.get("roomier"):
        lines.append(f"largest arrays (of the same program compiled for {big['compiled_for']}):")
        lines += [f"  {x['bytes'] / gib:6.2f} GiB x {x['count']}  {x['array']}  {x['made_by']}"
                  for x in big["largest"]]  # fmt: skip
    for t in r.get("tried", ()):
        lines.append(f"tried {t['setting']}: {'fits' if t['fits'] else 'does not fit'}")
    if "tried" in r:
        lines.append(outcome(r))
    return "\n".join(lines)


def loops(e: dict) -> list[str]:
    """How often the parts of a program run and how long they take, the longest first."""
    first, rest = e["programs"][:SHOWN], e["programs"][SHOWN:]
    lines = [f"  {p['times']} x {p['name']}: {p['seconds'] * 1e3:.1f} ms" for p in first]
    if rest:
        took = sum(p["seconds"] for p in rest) * 1e3
        lines.append(f"  {len(rest)} more, together {took:.1f} ms (--json has all)")
    if names := e["unknown_trips"]:
        lines.append(f"unknown trips, counted once though the data decide: {', '.join(names)}")
    return lines


def outcome(r: dict) -> str:
    """What came of trying other settings."""
    if "advice" in r:
        return f"fits with these flags added: {r['advice']}"
    if r["untried"]:
        count = len(r["tried"])
        return f"none of these {count} fits; all there are to try: --tries={count + r['untried']}"
    if r["tried"]:
        return "none of these fits: take a larger slice"
    return "no setting that needs less is known, so none was tried: take a larger slice"


if __name__ == "__main__":
    cli.run(main)

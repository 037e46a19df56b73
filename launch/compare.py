"""Several systems side by side on the same scenes and tasks, as one page of the docs.

    python -m launch.compare groma-tiny mg-llava-tiny ferret-tiny tiny-grounding-gpt-tiny \\
        --out docs/comparison.md

Each is asked every task that it has a part for: object images and videos are taken by some alone,
and proposals are Groma's. Of each: parameters; tokens per picture (visual vectors in a prompt);
floating-point operations of an answer, counted (matrix products and convolutions of the prompt and
of every token after it); time of an answer, asked alone, the median on this machine. Results are
kept beside the page (OUT.jsonl), so that a second call does not repeat them: --fresh does. Those of
a release that has been trained anew since do not count.
"""

import argparse
import contextlib
import json
import os
import platform
import shlex
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import cli, measuring
from launch.ship import SHOWN, training
from mg_jax.errors import UserError

TIMED = 20  # questions of presence that are asked one by one
LOADING = ("quantize", "dtype", "mesh")  # named by a row, and the command, where they were given
SCENES = "scenes:seed=700000,n=300"
SIMULATED = (
    " With every question about a scene MG-LLaVA is given the boxes of a simulated detector, made "
    "of what is there; no detector's cost is counted."
)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("releases", nargs="+", metavar="RELEASE", help="shipped names or folders")
    p.add_argument("--out", required=True, type=Path, metavar="FILE", help="the page (Markdown)")
    p.add_argument("--data", default=SCENES, help="default %(default)s")
    p.add_argument("--task", action="append", choices=list(SHOWN), help="default all; repeatable")
    cli.add_load_flags(p)
    p.add_argument("--fresh", action="store_true", help="measure everything anew")
    return p


def fits(assistant: Any, task: Any) -> bool:
    """Whether the system has a part for a task."""
    return not task.needs or task.needs in assistant.adapter.can


def costs(assistant: Any, queries: Sequence[Any]) -> dict[str, float]:
    """Parameters, tokens per picture, operations and milliseconds of an answer; means and, of
    times, the median over the questions, each asked alone."""
    import jax
    import numpy as np

    from mg_jax import flops, models
    from mg_jax.generate import Sampling

    system, params, key = assistant.system, assistant.params, jax.random.key(0)
    plain = models.build(system.name, flops.counted(system.cfg)).module
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    times: list[float] = []
    tokens: list[int] = []
    work: list[float] = []
    lengths: list[int] = []
    counted: dict[Any, tuple[float, float]] = {}  # operations of the prompt, of a token, by shapes

    def prefill(p, batch, model=system.module):
        def read(m):
            cache = m.lm.empty_cache(1, batch["tokens"].shape[1] + 1)
            logits, cache, aux = m.prefill(batch, cache)
            return logits, cache, {k: aux[k] for k in ("tokens", "valid")}

        return model.apply({"params": p}, method=read)

    def decode(p, ids, cache):
        return plain.apply({"params": p}, ids, cache, method="decode")

    def counted_prefill(p, batch):
        return prefill(p, batch, plain)

    run = jax.jit(prefill)
    for query in [queries[0], *queries]:  # the first warms up
        start = time.perf_counter()
        _, batch, out, _ = assistant.generate([query], 48, Sampling(), key)
        times.append(1000 * (time.perf_counter() - start))
        lengths.append(int(out.length[0]))
        given = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}
        size = tuple(sorted((k, v.shape) for k, v in given.items()))
        if size not in counted:
            cache = jax.eval_shape(counted_prefill, shapes, given)[1]
            one = jax.ShapeDtypeStruct((1, 1), np.int32)
            counted[size] = (
                flops.count(counted_prefill, shapes, given),
                flops.count(decode, shapes, one, cache),
            )
        read, each = counted[size]
        work.append(read + each * (lengths[-1] - 1))
        aux = jax.device_get(run(params, batch)[2])
        tokens.append(int((np.isin(aux["tokens"], assistant.adapter.visual) & aux["valid"]).sum()))
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "tokens": statistics.mean(tokens[1:]),
        "flops": statistics.mean(work[1:]),
        "milliseconds": statistics.median(times[1:]),
        "answer_tokens": statistics.mean(lengths[1:]),
    }


def measured(
    source: str, data: str, names: Sequence[str], kept: Path, loading: dict[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Results of a release by task, and its costs under ""; what `kept` has is not repeated.
    `loading`: arguments of `mg_jax.load`."""
    from mg_jax import checkpoint
    from mg_jax.evals import report, tasks

    about = {"checkpoint": source, "data": data, "made": training(checkpoint.find(source))}
    about |= loading or {}
    rows: dict[str, dict[str, Any]] = {}
    for line in kept.read_text(encoding="utf-8").splitlines() if kept.is_file() else ():
        with contextlib.suppress(ValueError):  # torn, when a call was killed
            row = json.loads(line)
            same = all(row.get(k) == about.get(k) for k in LOADING)
            if same and about.items() <= row.items():
                rows[row["task"]] = row
    missing = [name for name in ("", *names) if name not in rows]
    if not missing:
        return rows
    assistant = cli.load(source, **(loading or {}))
    for name in missing:
        if name and not fits(assistant, tasks.get(name)):
            continue
        row = {"task": name, **about}
        if name:
            result = measuring.measure(assistant, tasks.get(name), data)
            row |= report.as_dict(result, source)
        else:
            items = tasks.questions(tasks.get("presence"), data, TIMED)
            row |= {"system": assistant.system.name}
            row |= costs(assistant, [item.query() for item in items])
        rows[name] = row
        print(json.dumps(row), flush=True)
        with open(kept, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return rows


def command(args: argparse.Namespace) -> str:
    """The command of a page: releases, and a page of an absolute path, by their names alone, for
    they say where things lie on this machine."""
    words = [Path(source).name for source in args.releases]
    words += ["--data", args.data] if args.data != SCENES else []
    words += [f"--{k}={v}" for k, v in cli.load_options(args).items()]
    words += [word for name in args.task or () for word in ("--task", name)]
    out = args.out.name if args.out.is_absolute() else args.out.as_posix()
    return shlex.join(["python", "-m", "launch.compare", *words, "--out", out])


def page(
    found: dict[str, dict[str, dict[str, Any]]], data: str, names: Sequence[str], asked_by: str
) -> list[str]:
    """The page as lines; found: of each release what `measured` gives; asked_by: the command."""
    from mg_jax.evals import questions

    short = {source: Path(source).name for source in found}
    unseen = questions.is_scenes(data) and not questions.warning(data)
    systems = {rows[""]["system"] for rows in found.values()}
    given = "mg_llava" in systems and questions.is_scenes(data)

    def row(title: str, cells: Sequence[str]) -> str:
        return f"| {title} | {' | '.join(cells)} |"

    def cost(title: str, show: Any) -> str:
        return row(title, [show(rows[""]) for rows in found.values()])

    asked = [name for name in names if any(name in rows for rows in found.values())]
    lines = [
        "# The systems side by side",
        "",
        f"On `{data}`{', which none of them is trained on' * unseen}. Written by",
        "",
        f"    {asked_by}",
        "",
        row("", [short[source] for source in found]),
        "|---" * (len(found) + 1) + "|",
        cost("system", lambda c: c["system"]),
        cost("million parameters", lambda c: f"{c['parameters'] / 1e6:.1f}"),
        cost("tokens per picture", lambda c: f"{c['tokens']:.0f}"),
        cost("GFLOP of an answer", lambda c: f"{c['flops'] / 1e9:.2f}"),
        cost("tokens of an answer", lambda c: f"{c['answer_tokens']:.0f}"),
        cost("ms of an answer", lambda c: f"{c['milliseconds']:.0f}"),
    ]
    for name in asked:
        metric = SHOWN[name][0]
        cells = ["" if name not in r else _cell(r[name].get(metric)) for r in found.values()]
        lines.append(row(f"{name}, {metric}", cells))
    return [
        *lines,
        "",
        "Empty: the system has no part for the task. `launch.evaluate --help` says what the tasks "
        "ask. The costs are those of questions whether a thing is there, asked one by one: "
        f"operations are counted, times are medians on {os.cpu_count()} cores of "
        f"{platform.machine()}.{SIMULATED * given}",
        "",
    ]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main(argv: list[str] | None = None) -> None:
    args = arguments().parse_args(argv)
    if not args.out.absolute().parent.is_dir():
        raise UserError(f"--out {args.out}: no folder {args.out.parent}")
    if len(set(args.releases)) < len(args.releases):
        raise UserError("a release is named twice")
    names = args.task or list(SHOWN)
    kept = args.out.with_suffix(".jsonl")
    if args.fresh:
        kept.unlink(missing_ok=True)
    found = {s: measured(s, args.data, names, kept, cli.load_options(args)) for s in args.releases}
    lines = page(found, args.data, names, command(args))
    args.out.write_text("\n".join(lines), encoding="utf-8")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    cli.run(main)

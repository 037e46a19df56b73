"""Measure a trained system on all its tasks and make the release folder that is shipped.

    python -m launch.ship runs/detection runs/alignment runs/instruction \\
        --out mg_jax/releases/groma-tiny

The folders are finished training runs in the order of their stages; the release is that of the
last one. Its model card gets the commands and seeds of all stages, their times and loss curves,
and the numbers on scenes that are kept for evaluation. Measurements are kept in measured.jsonl of
the last run, so that a second call does not repeat them. Runs are named runs/STAGE in the
card, whatever their folders here are called.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import cli
from mg_jax.disk import read_json, replace
from mg_jax.errors import UserError

# task -> its metrics in the card, the headline first
SHOWN: dict[str, tuple[str, ...]] = {
    "rec": ("acc@0.5", "absent_accuracy"),
    "regions": ("accuracy",),
    "presence": ("accuracy",),
    "absent": ("accuracy",),
    "all_instances": ("as_many_ar",),
    "proposals": ("ar@100", "ap50"),
    "grounded_caption": ("phrase_recall", "invented"),
}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.ship",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("runs", nargs="+", type=Path, help="workdirs of the stages, in order")
    p.add_argument("--out", required=True, type=Path, help="folder of the release")
    p.add_argument("--data", default="scenes:seed=700000,n=500", help="default %(default)s")
    return p


def measured(release: Path, data: str, kept: Path) -> list[dict[str, Any]]:
    """One result a task, the tasks that `kept` has no line for measured now.

    Lines about other data, or about the run before it was trained further, do not count.
    """
    import mg_jax
    from mg_jax.evals import report, tasks

    steps = read_json(release / "config.json")["provenance"]["steps"]
    rows = []
    for line in kept.read_text(encoding="utf-8").splitlines() if kept.is_file() else ():
        with contextlib.suppress(ValueError):  # torn, when a call was killed
            rows.append(json.loads(line))
    rows = [r for r in rows if r["data"] == data and r.get("steps", steps) == steps]
    assistant = None
    for name in SHOWN:
        for blind in (False, True):
            if any((r["task"], r["blind"]) == (name, blind) for r in rows):
                continue
            assistant = assistant or mg_jax.load(release)
            task = tasks.get(name)

            def predict(queries, assistant=assistant, length=task.max_new_tokens):
                return assistant.answer(queries, max_new_tokens=length, batch_size=16)

            result = tasks.evaluate(task, data, predict, assistant.propose, blind=blind)
            rows.append(report.as_dict(result, release.name) | {"steps": steps})
            print(json.dumps(rows[-1]), flush=True)
            with open(kept, "a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    return rows


def results_table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: the number, the same without the picture, the best constant answer."""
    lines = ["| task | metric | value | noise for pictures | constant answer | n |"]
    lines.append("|---|---|---|---|---|---|")
    by_key = {(r["task"], r["blind"]): r for r in rows}
    for task, metrics in SHOWN.items():
        seen, blind = by_key[task, False], by_key[task, True]
        for k, metric in enumerate(metrics):
            rival = seen.get("majority" if k == 0 else f"majority_{metric}")
            cells = [seen.get(metric), blind.get(metric), rival]
            shown = " | ".join("" if v is None else f"{v:.3f}" for v in cells)
            lines.append(f"| {task} | {metric} | {shown} | {seen['n']} |")
    return lines


def stage_rows(runs: list[Path]) -> tuple[list[str], list[str], dict[str, str]]:
    """(table lines, commands, name in the card by the folder's own) of the training runs."""
    names = {}
    for run in runs:
        names |= dict.fromkeys((str(run), str(run.resolve())), f"runs/{_config(run)['stage']}")
    lines = ["| stage | updates x batch | seed | data | hours |", "|---|---|---|---|---|"]
    commands = []
    for run in runs:
        config = _config(run)
        made = read_json(run / "release" / "config.json")["provenance"]
        meta = run / "checkpoints" / str(made["steps"]) / "meta" / "metadata"
        hours = read_json(meta)["seconds"] / 3600
        lines.append(
            f"| {config['stage']} | {made['steps']:,} x {config['batch_size']} | {made['seed']} | "
            f"`{made['data']}` | {hours:.2f} |"
        )
        commands.append(renamed(made["command"], names))
    return lines, commands, names


def _config(run: Path) -> dict[str, Any]:
    if not (run / "release").is_dir():
        raise UserError(f"{run}: no finished training run: it has no folder release")
    return read_json(run / "config.json")


def renamed(text: str, names: dict[str, str]) -> str:
    """The text with the folders of runs as the card calls them."""
    for folder in sorted(names, key=len, reverse=True):
        text = text.replace(folder, names[folder])
    return text


def check_out(out: Path, runs: Sequence[Path]) -> None:
    """Raises UserError when something else than a release is in the way, or holds a run."""
    from mg_jax import checkpoint

    whole = out.resolve()
    for run in runs:
        if whole in (run.resolve(), *run.resolve().parents):
            raise UserError(f"--out {out}: holds the run {run}; name another folder")
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not checkpoint.is_release(out)):
        raise UserError(f"--out {out}: is there and is no release; name another folder")


def main(argv: list[str] | None = None) -> None:
    args = arguments().parse_args(argv)
    from mg_jax import progress

    check_out(args.out, args.runs)
    lines, commands, names = stage_rows(args.runs)
    release = args.runs[-1] / "release"
    rows = measured(release, args.data, args.runs[-1] / "measured.jsonl")
    args.out.parent.mkdir(parents=True, exist_ok=True)

    part = args.out.with_name(args.out.name + ".tmp")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(release, part)
    progress.draw_curves({_config(run)["stage"]: run for run in args.runs}, part / "loss.png")
    config = json.loads((part / "config.json").read_text(encoding="utf-8"))
    made = config["provenance"]
    made |= {key: renamed(made[key], names) for key in ("command", "init_from")}
    (part / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    versions = ", ".join(f"{k} {v}" for k, v in made["versions"].items())
    size = (part / "params.safetensors").stat().st_size
    card = [
        f"# {args.out.name}",
        "",
        f"{config['system']} at {config['model']['image_size']} px, {size / 2e6:.1f} million "
        "parameters in bfloat16, trained from random values on procedural scenes: a small system "
        "to try the code with. It knows the scenes' shapes, colours and words, and no photos.",
        "",
        f'    assistant = mg_jax.load("{args.out.name}")',
        "",
        "## How it was made",
        "",
        *(f"    {command}" for command in commands),
        "",
        *lines,
        "",
        f"On {os.cpu_count()} CPU cores ({platform.machine()}), {versions}. Hours are wall time.",
        "",
        "![loss of every stage](loss.png)",
        "",
        "## What it reaches",
        "",
        f"`python -m launch.evaluate --checkpoint {args.out.name} --task TASK --data {args.data}`; "
        "these scenes are never trained on. *Noise for pictures* is the same with `--blind`; "
        "*constant answer* is the best that can be done without looking.",
        "",
        *results_table(rows),
        "",
    ]
    (part / "README.md").write_text("\n".join(card), encoding="utf-8")
    replace(part, args.out)
    print(f"wrote {args.out}: {size / 1e6:.1f} MB of parameters")


if __name__ == "__main__":
    cli.run(main)

"""Repeat two of Groma's ablations at tiny size, and print a table of means and spreads.

    python -m launch.ablate --start runs/b --workdir runs/ablations

lm     the language model learns in the last stage, or stays as it is (paper, table 7)
merge  four patches make one image token, or each is its own (paper, table 8); the projector
       starts afresh in both arms, since its input differs

All arms of an ablation get the same start (the release or workdir of stage=alignment), the same
steps, batches and seeds. Runs that are done are not repeated, one that was stopped goes on. One
JSON line a run, then a Markdown table; `seconds` is processor time of training, all cores added
(of a run that was stopped, from where it went on).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import cli
from mg_jax.disk import read_json
from mg_jax.errors import UserError

FRESH_PROJECTOR = (
    "--config.init_ignore=('projector/.*',)",
    "--config.init_required=('vision/.*','proposer/.*','region_encoder/.*','lm/.*','new_tokens/.*')",
)
# ablation -> arm -> flags of launch.train
ARMS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "lm": {
        "trained": (),
        "frozen": ("--config.trainable=('projector/.*','region_encoder/.*','new_tokens/.*')",),
    },
    "merge": {
        "on": FRESH_PROJECTOR,
        "off": (
            *FRESH_PROJECTOR,
            "--config.model.token_merge=False",
            "--config.model.lm.max_positions=640",  # 192 image tokens more
        ),
    },
}
# task -> metrics of launch.evaluate
MEASURED = {"rec": ("acc@0.5",), "regions": ("accuracy",), "presence": ("accuracy",)}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.ablate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--start", required=True, help="release or workdir of stage=alignment")
    p.add_argument("--workdir", required=True, type=Path, help="folder of all runs")
    p.add_argument("--only", choices=list(ARMS), help="one ablation (default: both)")
    p.add_argument("--steps", type=int, default=400, help="of every run (default %(default)s)")
    p.add_argument("--seeds", type=int, default=3, help="runs of an arm (default %(default)s)")
    p.add_argument("--questions", type=int, default=300, help="scenes a task (default %(default)s)")
    return p


def train(folder: Path, start: str, steps: int, seed: int, flags: Sequence[str]) -> float:
    """Train one run to its end; returns the processor seconds of this call."""
    command = [
        sys.executable, "-m", "launch.train", "--config",
        "configs/groma.py:stage=instruction,size=tiny", f"--workdir={folder}",
        f"--config.init_from={start}", f"--config.train.steps={steps}", f"--config.seed={seed}",
        f"--config.optim.warmup_steps={max(steps // 10, 1)}", *flags,
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = subprocess.run(command, check=False).returncode
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise UserError(f"{folder}: training ended with exit code {code}; see above")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(release: Path, questions: int) -> dict[str, float]:
    """The metrics of MEASURED on reserved scenes."""
    import mg_jax
    from mg_jax.evals import tasks

    assistant = mg_jax.load(release)
    found: dict[str, float] = {}
    for name, metrics in MEASURED.items():
        task = tasks.get(name)
        data = f"scenes:seed=700001,n={questions}"

        def predict(queries, length=task.max_new_tokens):
            return assistant.answer(queries, max_new_tokens=length, batch_size=16)

        result = tasks.evaluate(task, data, predict, assistant.propose)
        found |= {f"{name} {metric}": float(result.metrics[metric]) for metric in metrics}
    return found


def compared(row: dict[str, Any], asked: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The row of a finished run. Raises UserError when it is not of what is asked for."""
    for key, value in asked.items():
        if row.get(key, value) != value:
            raise UserError(
                f"{file}: its run has --{key} {row[key]}, not {value}, and would not compare; name "
                "another --workdir"
            )
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean and (lowest to highest) of every metric, one line an arm."""
    names = [f"{task} {metric}" for task, metrics in MEASURED.items() for metric in metrics]
    lines = [f"| ablation | arm | runs | {' | '.join(names)} | CPU minutes a run |"]
    lines.append("|---" * (len(names) + 4) + "|")
    for ablation, arms in ARMS.items():
        for arm in arms:
            mine = [r for r in rows if (r["ablation"], r["arm"]) == (ablation, arm)]
            if not mine:
                continue
            cells = []
            for name in names:
                values = [r[name] for r in mine]
                spread = f"({min(values):.3f} to {max(values):.3f})"
                cells.append(f"{statistics.mean(values):.3f} {spread}")
            minutes = statistics.mean(r["seconds"] for r in mine) / 60
            cells.append(f"{minutes:.0f}")
            lines.append(f"| {ablation} | {arm} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    args = arguments().parse_args(argv)
    for name in ("steps", "seeds", "questions"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: give at least 1")
    rows = []
    for ablation in [args.only] if args.only else ARMS:
        for seed in range(args.seeds):  # arms in turn, so that an early stop leaves pairs
            for arm, flags in ARMS[ablation].items():
                folder = args.workdir / f"{ablation}-{arm}-{seed}"
                asked = {
                    "ablation": ablation, "arm": arm, "seed": seed, "steps": args.steps,
                    "start": args.start, "questions": args.questions,
                }  # fmt: skip
                done = folder / "ablation.json"
                if not done.is_file():
                    seconds = train(folder, args.start, args.steps, seed, flags)
                    row = asked | {"seconds": round(seconds)}
                    row |= measure(folder / "release", args.questions)
                    done.write_text(json.dumps(row) + "\n", encoding="utf-8")
                rows.append(compared(read_json(done), asked, done))
                print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    cli.run(main)

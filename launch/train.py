"""Train a stage, or resume it: the same command again continues where the run stopped.

    python -m launch.train --config configs/groma.py:stage=detection,size=tiny --workdir runs/a

Any value of the config can be set as --config.section.key=value, for example
--config.data=voc:FOLDER or --config.train.steps=500; configs/groma.py and configs/base.py list
them. The workdir gets checkpoints, metrics.jsonl, TensorBoard files, a loss curve and, when the
run is finished, release/, which mg_jax.load() and --config.init_from of the next stage take.

On several machines (docs/pods.md) one process runs on each, all with the same command and the
same workdir: with --distributed where the cluster says who they are (TPU slices, SLURM,
Kubernetes), else with --coordinator=HOST:PORT --processes=N --process=I. --profile=5 traces five
steps into workdir/profile.

Exit codes: 0 only when training is finished, 75 after SIGTERM (saved), 130 after Ctrl-C (saved),
2 for bad input (one line says what), 65 for a loss that is not finite, 1 for anything else, such
as another process that has gone. A launcher starts the same command again after any but 0, 2 and
65: a training that goes on from its last checkpoint diverges as it did before.
"""

import json
import shlex
import sys
import traceback
from pathlib import Path

from absl import flags

from launch import cli
from launch.config_flag import CONFIG
from mg_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run (no URL): made, or resumed")
_PROFILE = flags.DEFINE_integer("profile", 0, "steps to trace into workdir/profile")
cli.define_process_flags()


def main() -> int:
    """Parse the flags, then train; returns the exit code."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    rest = cli.parse_flags()
    if CONFIG.value is None or _WORKDIR.value is None:
        name, example = ("workdir", "runs/a") if CONFIG.value is not None else (
            "config", "configs/groma.py:stage=detection,size=tiny"
        )  # fmt: skip
        raise UserError(f"--{name} is missing: for example --{name} {example}")
    if rest:
        raise UserError(f"{rest[0]!r} is not a flag: write --flag=value")
    command = shlex.join(["python", "-m", "launch.train", *sys.argv[1:]])
    if _PROFILE.value:
        CONFIG.value.train.profile = _PROFILE.value
    several = cli.join_processes(flags.FLAGS)
    try:
        return run(CONFIG.value, _WORKDIR.value, command)
    except UserError:
        raise
    except Exception as e:
        if not several:
            raise
        from mg_jax import processes

        traceback.print_exc()
        print(f"error: {type(e).__name__}: start the same command again on all machines; it goes "
              "on from the last checkpoint", file=sys.stderr)  # fmt: skip
        return processes.leave(1)


def run(config, workdir: str, command: str = "") -> int:
    """Run `config` in `workdir`, export the release of a finished run; returns the exit code."""
    from conversion import trunks
    from mg_jax import disk, progress, train
    from mg_jax.data import pipeline
    from mg_jax.export import export

    cli.keep_compiled()
    folder = disk.local(workdir)
    begun = (p.name.isdigit() for p in (folder / "checkpoints").glob("*"))
    if config.init_from and not any(begun):
        config.init_from = trunks.start(config.init_from, folder / "trunk")
    try:
        outcome = train.train(config, folder)
    except train.Diverged as e:
        print(f"error: {e}", file=sys.stderr)
        return progress.DIVERGED
    if outcome.code == 0 and exported_steps(folder / "release") != outcome.step:
        fields = pipeline.release_fields(config, outcome.plan.system.cfg)
        release = export(
            outcome, config, folder, fields=fields, command=command,
            tokenizer=pipeline.tokenizer_folder(config),
        )  # fmt: skip
        print(f"finished: the release is in {release}", file=sys.stderr)
    return outcome.code


def exported_steps(release: Path) -> int | None:
    """Updates behind the release that is there, None without one."""
    try:
        made = json.loads((release / "config.json").read_text(encoding="utf-8"))
        return int(made["provenance"]["steps"])
    except (OSError, ValueError, KeyError):
        return None


if __name__ == "__main__":
    cli.run(main)

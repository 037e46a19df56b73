"""Print a launcher with the parameters of settings.env in it.

    python -m launch.pods.render jobset.yaml [--settings FILE] [NAME=VALUE ...]

Only the names of the settings are replaced: what a file writes as ${SLURM_JOB_ID} stays.
"""

import argparse
import os
import re
from pathlib import Path

from launch import cli
from mg_jax.errors import UserError

HERE = Path(__file__).parent
FILES = ("jobset.yaml", "slurm.sbatch", "sky.yaml")


def settings(path: Path) -> dict[str, str]:
    """NAME=value lines of a settings file, and what follows from them. Raises UserError."""
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"[A-Z_]+", name):
            raise UserError(f"{path}:{number}: write NAME=value")
        found[name] = value.strip().strip('"')
    return found


def render(name: str, values: dict[str, str]) -> str:
    """The launcher `name` with `values`. Raises UserError for one that is missing."""
    if "WORKDIR" not in values:
        raise UserError(f"{name}: WORKDIR is missing in the settings")
    mount, runs, _ = values["WORKDIR"].partition("/runs/")
    if not runs:
        raise UserError(f"WORKDIR={values['WORKDIR']}: write MOUNTED_BUCKET/runs/NAME")

    values = {"MOUNT": mount, **values}
    text = (HERE / name).read_text(encoding="utf-8")
    theirs = {"SLURM_RESTART_COUNT:-0"}

    def value(match: re.Match) -> str:
        if match[1] in theirs:
            return match[0]
        if match[1] not in values:
            raise UserError(f"{name}: {match[1]} is missing in the settings")
        return values[match[1]]

    return re.sub(r"\$\{([^}]+)\}", value, text)


def main(argv: list[str] | None = None) -> None:
    """Print the file."""
    p = argparse.ArgumentParser(prog="python -m launch.pods.render", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("file", choices=FILES)
    p.add_argument("values", nargs="*", metavar="NAME=VALUE", help="in place of the settings'")
    p.add_argument("--settings", type=Path, default=os.environ.get("SETTINGS"),
                   help="default $SETTINGS, else settings.env beside the launchers")  # fmt: skip
    args = p.parse_args(argv)
    path = Path(args.settings or HERE / "settings.env")
    if not path.is_file():
        raise UserError(f"--settings {path}: no such file")
    found = settings(path)
    for text in args.values:
        name, equals, value = text.partition("=")
        if not equals or name not in found:
            raise UserError(f"{text}: write NAME=VALUE with one of {', '.join(found)}")
        found[name] = value
    print(render(args.file, found), end="")


if __name__ == "__main__":
    cli.run(main)

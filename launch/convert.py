"""Convert PyTorch weights into a release, and a release back into PyTorch weights.

    python -m launch.convert FOLDER RELEASE [--dtype bf16] [--check]
    python -m launch.convert org/name RELEASE --revision COMMIT
    python -m launch.convert DELTA RELEASE --base FOLDER
    python -m launch.convert RELEASE FOLDER [--format bin]

SRC is a folder of weights with its config.json, a file beside one, a name on the Hugging Face hub,
or a release. What it holds is told by its config.json; docs/conversion.md lists what is known.
Memory does not grow with the model. --dry-run shows what would be done and reads no tensor;
--check reads the result again and compares every tensor. Interrupted, the same command continues.
Exit status: 0 done, 1 --check found a difference, 2 bad input or a full disk, 130 interrupted.
"""

import argparse
import sys
import time
from typing import Any

from launch import cli

PLAIN_SECONDS = 5.0  # without a terminal: at most one line in this time


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("src", metavar="SRC", help="folder, file, name on the hub, or release")
    p.add_argument("dst", metavar="DST", help="folder to write")
    p.add_argument("--to", default="auto", choices=("auto", "jax", "torch"),
                   help="default: torch from a release, jax from anything else")  # fmt: skip
    p.add_argument("--system", default="auto", metavar="NAME", help="if config.json does not tell")
    p.add_argument("--dtype", default="keep", choices=("keep", "bf16", "f32"),
                   help="of the result (default: as it is)")  # fmt: skip
    p.add_argument("--base", metavar="SRC", help="what delta weights are added to")
    p.add_argument("--format", default="safetensors", choices=("safetensors", "bin"),
                   help="for PyTorch: default safetensors; bin needs PyTorch")  # fmt: skip
    p.add_argument("--revision", metavar="R", help="branch, tag or commit of a name on the hub")
    p.add_argument("--stage", default="", help="the training stage that a release is of")
    p.add_argument("--dry-run", action="store_true", help="show what would be done")
    p.add_argument("--check", action="store_true", help="compare the result with its source")
    p.add_argument("--overwrite", action="store_true", help="replace a folder that is there")
    return p


class Bytes:
    """A bar of bytes on a terminal, else a line every few seconds; `advance` moves it."""

    def __init__(self, name: str, total: int):
        self.name, self.total, self.done = name, total, 0
        self._begin = self._last = time.monotonic()
        self._rich: Any = None

    def __enter__(self) -> "Bytes":
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._rich = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.DownloadColumn(binary_units=True),
                progress.TransferSpeedColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._rich.start()
            self._task = self._rich.add_task(self.name, total=self.total)
        return self

    def __exit__(self, *_) -> None:
        if self._rich is not None:
            self._rich.stop()

    def advance(self, count: int) -> None:
        """`count` bytes more are done."""
        self.done += count
        if self._rich is not None:
            self._rich.advance(self._task, count)
            return
        now = time.monotonic()
        if now - self._last > PLAIN_SECONDS:
            self._last = now
            speed = self.done / 2**20 / (now - self._begin)
            amount = f"{self.done / 2**30:.2f} of {self.total / 2**30:.2f} GiB"
            print(f"{self.name}  {amount}  {speed:.0f} MiB/s", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._rich is not None:
            self._rich.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status. Raises UserError for what cannot be converted."""
    args = arguments().parse_args(argv)
    import conversion

    job = conversion.prepare(
        args.src, args.dst, to=args.to, system=args.system, dtype=args.dtype, base=args.base,
        format=args.format, revision=args.revision, stage=args.stage, overwrite=args.overwrite,
    )  # fmt: skip
    if args.dry_run:
        print(job.describe())
        return 0
    for line in [*job.headline, *(f"  note: {note}" for note in job.notes)]:
        print(line, file=sys.stderr, flush=True)
    try:
        with Bytes("converting", job.nbytes) as bar:
            folder = job.run(bar.say, bar.advance)
    except KeyboardInterrupt:
        print(f"\n{args.dst}: not made; run the same command again to continue", file=sys.stderr)
        raise
    print(f"wrote {folder}")
    if not args.check:
        return 0
    with Bytes("checking", job.nbytes) as bar:
        report = job.check(bar.advance)
    print(report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    cli.run(main)

"""Turn any data set into ArrayRecord shards, for training at scale.

    python -m launch.build_data coco:train.json,images shards/coco --workers 16
    python -m launch.build_data sa1b:DIR shards/sa1b --images keep
    python -m launch.build_data SPEC OUT --runner DataflowRunner -- --project=P --region=R ...
    python -m launch.build_data --verify OUT

SPEC is a data set as --config.data takes it; then train on --config.data=shards:OUT. Pictures are
read to their end, and what is malformed is left out and listed in OUT/dataset.json. Interrupted,
the same command goes on; the bytes of the shards depend on neither workers nor runner. --runner
takes the name of an Apache Beam runner (extra: beam) and what follows -- as Beam's options: the
data and OUT must then have the same paths on all machines. Exit status: 0 done, 2 bad input, too
many malformed examples, or a full disk, 130 interrupted.
"""

import argparse
import functools
import os
import signal
import sys
import time
from typing import Any

from launch import cli
from launch.bar import PLAIN_SECONDS


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.build_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("spec", metavar="SPEC", nargs="?", help="data set, as coco:FILE,DIR")
    p.add_argument("out", metavar="OUT", help="folder to write")
    p.add_argument("--shards", type=int, metavar="N", help="default: one for 1,000 examples")
    p.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N",
                   help="processes (default: one a core)")  # fmt: skip
    p.add_argument("--images", default="embed", metavar="HOW",
                   help="embed: pictures into the shards (default); copy: beside them; "
                   "keep: where they are")  # fmt: skip
    p.add_argument("--resize", type=int, default=0, metavar="S",
                   help="make pictures with a longer side than S pixels smaller")  # fmt: skip
    p.add_argument("--limit", type=int, metavar="N", help="only the first N examples")
    p.add_argument("--runner", default="local", metavar="NAME",
                   help="local (default), DirectRunner, DataflowRunner, ...")  # fmt: skip
    p.add_argument("--verify", action="store_true", help="compare OUT with its checksums")
    return p


class Counter:
    """A bar of examples on a terminal, else a line every few seconds; calling it moves it, and
    raises a KeyboardInterrupt that was lost: one in a callback of the garbage collector is."""

    def __init__(self, name: str, total: int):
        self.name, self.total, self.done = name, total, 0
        self.interrupted = False
        self._last = 0.0
        self._rich: Any = None

    def __enter__(self) -> "Counter":
        self._handler = signal.signal(signal.SIGINT, self._interrupt)
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            columns = (progress.BarColumn(), progress.MofNCompleteColumn())
            self._rich = progress.Progress(
                progress.TextColumn("{task.description}"), *columns,
                progress.TimeRemainingColumn(), console=Console(stderr=True),
                auto_refresh=False,  # which takes a thread, and the workers are forks
            )  # fmt: skip
            self._rich.start()
            self._task = self._rich.add_task(self.name, total=self.total)
        return self

    def _interrupt(self, number, frame) -> None:
        self.interrupted = True
        raise KeyboardInterrupt

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGINT, self._handler)
        if self._rich is not None:
            self._rich.stop()

    def __call__(self, count: int) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.done += count
        now = time.monotonic()
        if self._rich is not None:
            self._rich.advance(self._task, count)
        if now - self._last < (PLAIN_SECONDS if self._rich is None else 0.1):
            return
        self._last = now
        if self._rich is not None:
            self._rich.refresh()
        else:
            print(f"{self.name}  {self.done}/{self.total}", file=sys.stderr, flush=True)


def run_beam(job: Any, runner: str, options: list[str]) -> None:
    """Make the missing shards on an Apache Beam runner. Raises UserError without Beam."""
    from mg_jax.data import build
    from mg_jax.errors import UserError

    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners import create_runner
    except ImportError as e:
        raise UserError(
            f"--runner {runner} needs Apache Beam: pip install 'mg_jax[beam]' ({e})"
        ) from None
    try:
        made = create_runner(runner)
    except (ValueError, ImportError) as e:
        raise UserError(f"--runner {runner}: {e}") from None
    with beam.Pipeline(made, options=PipelineOptions(options)) as pipeline:
        shards = pipeline | beam.Create(job.missing()) | beam.Reshuffle()
        _ = shards | beam.Map(functools.partial(build.build_remote, job=job))


def main(argv: list[str] | None = None) -> None:
    """Build or verify. Raises UserError for what cannot be built or differs."""
    given = sys.argv[1:] if argv is None else argv
    cut = given.index("--") if "--" in given else len(given)
    args, options = arguments().parse_args(given[:cut]), given[cut + 1 :]
    from mg_jax.data import build, shards
    from mg_jax.errors import UserError

    if args.verify:
        with Counter("verifying shards", len(shards.read_manifest(args.out)["files"])) as bar:
            manifest = shards.verify(args.out, bar)
        print(f"{args.out}: {manifest['examples']} examples, all checksums are right")
        return
    if not args.spec:
        raise UserError("OUT is missing: python -m launch.build_data SPEC OUT")
    if options and args.runner == "local":
        raise UserError(f"{options[0]!r}: what follows -- is for --runner NAME of Apache Beam")
    job, source = build.prepare(
        args.spec, args.out, args.shards, args.images, args.resize, args.limit
    )
    print(source.summary(), file=sys.stderr, flush=True)
    missing = job.missing()
    if len(missing) < job.shards:
        print(f"{job.shards - len(missing)} of {job.shards} shards are there", file=sys.stderr)
    if args.runner == "local":
        with Counter("building", sum(len(job.rows(k)) for k in missing)) as bar:
            build.run(job, source, args.workers, bar)
    elif missing:
        run_beam(job, args.runner, options)
    manifest = build.finish(job, source)
    size = sum(entry["bytes"] for entry in manifest["files"]) / 2**20
    print(
        f"wrote {args.out}: {manifest['examples']} examples in {job.shards} shards, {size:.1f} MiB"
    )
    if manifest["bad"]:
        first = manifest["problems"][0] if manifest["problems"] else ""
        print(f"left out {manifest['bad']} malformed, listed in dataset.json, the first: {first}")


if __name__ == "__main__":
    cli.run(main)

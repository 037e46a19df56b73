"""Any data set into a folder of shards (`mg_jax.data.shards`), in processes or on many machines.

`prepare` opens a source and plans the shards, `run` makes them in processes (`build_shard` is one
of them, `build_remote` the same elsewhere), `finish` writes dataset.json. While a build goes on
the folder holds building.json instead, and a JSON file beside each finished shard: such a folder
does not open, and the same build again makes what is missing. A shard depends on the source and
on the settings alone, so it has the same bytes whoever makes it.
"""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

from mg_jax.data.build_record import Pictures, make_record, read_example
from mg_jax.data.fingerprint import fingerprint
from mg_jax.data.records import VERSION
from mg_jax.data.shards import BUILDING, DATASET, FORMAT, checksum, read_manifest
from mg_jax.data.sources import Source, open_source
from mg_jax.data.sources.measures import measure
from mg_jax.disk import disk_errors, read_json, sync, temporary, write_json
from mg_jax.errors import BadRecord, UserError

IMAGES = ("embed", "copy", "keep")
_PER_SHARD = 1000  # examples of a shard, unless the number of shards is given
_MOST = 1024  # shards, unless their number is given
_LISTED = 1000  # problems of a shard of which the words are kept
# One record a chunk, as random access wants it. One thread: a pool of them does not survive a fork.
_WRITER = "group_size:1,zstd:1,max_parallelism:1"

Seen = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Job:
    """A planned build. spec: of the source; total: examples that are read of it; sample: hash of a
    few of them; the rest as `prepare` has them."""

    folder: str
    spec: str
    total: int
    sample: str
    shards: int
    images: str
    resize: int

    @property
    def settings(self) -> dict[str, Any]:
        """What two builds of one folder have in common."""
        fields = dataclasses.asdict(self)
        del fields["folder"]
        return {"format": FORMAT, "version": VERSION, **fields}

    def rows(self, k: int) -> range:
        """The examples of shard k."""
        return range(self.total * k // self.shards, self.total * (k + 1) // self.shards)

    def path(self, k: int) -> Path:
        """The file of shard k."""
        return Path(self.folder) / f"data-{k:05d}-of-{self.shards:05d}.array_record"

    def report(self, k: int) -> Path:
        """The JSON file that says shard k is finished."""
        return self.path(k).with_suffix(".json")

    def missing(self) -> list[int]:
        """The shards still to be made."""
        if (Path(self.folder) / DATASET).exists():
            return []
        return [k for k in range(self.shards) if not self.report(k).exists()]

    def errors(self) -> Any:
        """Context in which a full disk is an error that says how to go on."""
        mend = "The finished shards are kept: make room and run the same command again."
        return disk_errors(Path(self.folder), lambda: mend)


def prepare(
    spec: str,
    folder: str | Path,
    shards: int | None = None,
    images: str = "embed",
    resize: int = 0,
    limit: int | None = None,
) -> tuple[Job, Source]:
    """Open a source and begin a build of it in `folder`, or take up one that was interrupted.

    shards: their number, by default one for every 1,000 examples, 1,024 at most. images: "embed"
    puts the bytes of the picture files into the records, "copy" files beside the shards, "keep"
    only notes where they are. Pictures that are no files are embedded or copied as PNG. resize:
    pictures with a longer side than so many pixels are made smaller and encoded anew. limit: only
    the first examples. Videos are never copied.
    Raises UserError for wrong settings, a source that does not open, and a folder that holds
    something else.
    """
    if images not in IMAGES:
        raise UserError(f"images={images}: choose {', '.join(IMAGES)}")
    if images == "keep" and resize:
        raise UserError("images=keep leaves the pictures as they are: leave out resize")
    for name, value in (("shards", shards), ("resize", resize or None), ("limit", limit)):
        if value is not None and value < 1:
            raise UserError(f"{name}={value}: expected a whole number of at least 1")
    source = open_source(spec, training=True)
    total = len(source) if limit is None else min(limit, len(source))
    count = shards or min(-(-total // _PER_SHARD), _MOST)
    if not 1 <= count <= total:
        raise UserError(f"data {spec}: {total} examples cannot fill {count} shards: ask for fewer")
    sample = fingerprint(source, total)
    job = Job(str(folder), spec, total, sample, count, images, resize)
    with job.errors():
        _begin(job)
    return job, source


def _begin(job: Job) -> None:
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    held = [name for name in (DATASET, BUILDING) if (folder / name).exists()]
    if held == [BUILDING] and not any(folder.glob("data-*.json")):
        (folder / BUILDING).unlink()  # nothing is finished: any build may begin here
        held = []
    elif not held and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty and holds no shards: name another folder")
    for name in held:
        found = read_json(folder / name)
        other = [key for key, value in job.settings.items() if found.get(key) != value]
        if other:
            kind = "finished" if name == DATASET else "unfinished"
            key = other[0]
            why = "the source has changed since" if key == "sample" else (
                f"{key} is {found.get(key)} there and {job.settings[key]} here"
            )  # fmt: skip
            raise UserError(
                f"{folder}: holds the {kind} shards of another build ({why}): "
                "name another folder, or remove this one"
            )
    if not held:
        write_json(folder / BUILDING, job.settings)
    for part in (*folder.glob("*.part"), *folder.glob("images/*.part")):
        shutil.rmtree(part) if part.is_dir() else part.unlink()


def build_shard(job: Job, source: Source, k: int, seen: Seen = lambda n: None) -> None:
    """Make shard k, whole or not at all; seen(1) is called after each example.

    Malformed examples and unreadable pictures are left out and listed in the shard's report.
    Raises UserError when the disk is full.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    path = job.path(k)
    report: dict[str, Any] = {"file": path.name, "examples": 0, "bad": 0, "problems": []}
    measures: list[int] = []
    with job.errors(), Pictures(job.folder, k) as pictures:
        part = temporary(path)
        try:
            writer = ArrayRecordWriter(str(part), _WRITER)
            for i in job.rows(k):
                try:
                    example = read_example(source, i)
                    row = make_record(example, job.images, job.resize, pictures, i)
                except BadRecord as e:
                    report["bad"] += 1
                    if len(report["problems"]) < _LISTED:
                        report["problems"].append([i, str(e)])
                else:
                    writer.write(row)
                    report["examples"] += 1
                    measures += measure(example)
                seen(1)
            writer.close()
            report["measures"] = " ".join(map(str, measures))
            report |= {"bytes": part.stat().st_size, "sha256": checksum([part])}
            if job.images == "copy":
                report |= pictures.finish()
            sync(part)
            part.rename(path)
            write_json(job.report(k), report)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def run(job: Job, source: Source, workers: int = 1, seen: Seen = lambda n: None) -> None:
    """Make the missing shards, in `workers` processes where that is more than one.

    seen(n): n more examples are done, malformed ones included.
    Raises UserError as `build_shard`; the finished shards are kept whatever happens.
    """
    missing = job.missing()
    workers = min(workers, len(missing))
    if workers < 2:
        for k in missing:
            build_shard(job, source, k, seen)
        return
    # A fork shares the opened source; where it is not safe, the source is pickled
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    # without locks: a worker that is killed would take one along
    done, stop = context.RawArray("q", job.shards), context.RawValue("b", 0)
    shared = (job, source, done, stop, os.getpid())
    told = 0
    with _noted_interrupt() as interrupted:
        pool = futures.ProcessPoolExecutor(workers, context, _begin_worker, shared)
        try:
            waiting = {pool.submit(_work, k) for k in missing}
            while waiting:
                finished, waiting = futures.wait(waiting, 0.2, futures.FIRST_COMPLETED)
                if interrupted.is_set():
                    raise KeyboardInterrupt
                for future in finished:
                    future.result()
                count = sum(done)
                seen(count - told)
                told = count
        except futures.process.BrokenProcessPool:
            raise UserError(
                f"{job.folder}: a worker was killed, perhaps for want of memory: run the same "
                "command again with fewer workers; the finished shards are kept"
            ) from None
        finally:
            stop.value = 1
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _noted_interrupt() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets. Raised at any place it could leave a lock of a pool held for ever,
    and its shutdown waiting for that."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


_worker: dict[str, Any] = {}


def _begin_worker(job: Job, source: Source, done: Any, stop: Any, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # the parent was killed and can say no more

    threading.Thread(target=watch, daemon=True).start()
    _worker.update(job=job, source=source, done=done, stop=stop)


def _work(k: int) -> None:
    done, stop = _worker["done"], _worker["stop"]

    def seen(n: int) -> None:
        done[k] += n
        if stop.value:
            raise InterruptedError

    build_shard(_worker["job"], _worker["source"], k, seen)


def build_remote(k: int, job: Job) -> int:
    """`build_shard` on a machine that has not opened the source yet; returns k."""
    build_shard(job, _opened(job.spec), k)
    return k


@functools.lru_cache(maxsize=1)
def _opened(spec: str) -> Source:
    return open_source(spec, training=True)


def finish(job: Job, source: Source) -> dict[str, Any]:
    """Write dataset.json when all shards are there; returns what it holds.

    Raises UserError when a shard is missing, and when more examples are malformed than the
    source's max_bad allows, or all: the shards with them are then made anew by the next run.
    """
    folder = Path(job.folder)
    if (folder / DATASET).exists():
        return read_manifest(folder)
    missing = job.missing()
    if missing:
        raise UserError(f"{folder}: {len(missing)} of {job.shards} shards are missing: run again")
    reports = [read_json(job.report(k)) for k in range(job.shards)]
    problems = [f"{source.name}[{i}]: {what}" for r in reports for i, what in r["problems"]]
    bad = sum(report["bad"] for report in reports)
    if bad > source.max_bad * job.total or bad == job.total:
        for k, report in enumerate(reports):
            if report["bad"]:
                job.report(k).unlink()
        raise UserError(
            f"{problems[0]} ({bad} of {job.total} examples of {source.name} cannot be used): "
            "mend them, or allow a larger max_bad, and run the same command again"
        )
    manifest = {
        **job.settings,
        "name": source.name,
        "head": source.head,
        "tasks": source.tasks,
        "frequency": dict(source.frequency),
        "examples": job.total - bad,
        "left_out": dict(source.counts),
        "bad": source.bad + bad,
        "problems": (source.problems + problems)[:_LISTED],
        "files": [{k: v for k, v in r.items() if k not in ("bad", "problems")} for r in reports],
    }
    with job.errors():
        write_json(folder / DATASET, manifest)
        for path in (folder / BUILDING, *map(job.report, range(job.shards))):
            path.unlink(missing_ok=True)
    return manifest

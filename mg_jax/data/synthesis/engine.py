"""Several pictures at once, each finished once, stopped without losing anything.

Workers take pictures from one list; a finished one goes into the journal at once. Ctrl-C, an error
that ends the run, and an endpoint that fails again and again let what is under way come to its end:
every answer that arrives is noted.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mg_jax.data.synthesis.client import Failed, Stopped
from mg_jax.data.synthesis.journal import Journal
from mg_jax.data.synthesis.work import Item
from mg_jax.errors import BadRecord, UserError

PATIENCE = 10  # pictures that fail one after the other until the run ends


@dataclass
class Tally:
    """What became of the pictures of a run: finished before and now; (key, reason) of those that
    the endpoint failed on, and of those that cannot be read."""

    before: int = 0
    finished: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    error: BaseException | None = None


def run(
    items: Sequence[Item],
    make: Callable[[Item], Mapping[str, Any]],
    journal: Journal,
    stop: threading.Event,
    *,
    parallel: int = 4,
    patience: int = PATIENCE,
    advance: Callable[[int], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> Tally:
    """Finish every picture that the journal lacks; `make` gives the outcome of one.

    stop: set when the run is to end; whoever waits in `make` looks at it. advance: called with the
    number of pictures done. say: gets a line for people. What ended the run early, Ctrl-C
    included, stands in `Tally.error`, so that the caller can first write what there is.
    """
    left = [item for item in items if item.key not in journal]
    tally = Tally(before=len(items) - len(left))
    advance(tally.before)
    todo, results = iter(left), queue.SimpleQueue[tuple[Item, Any]]()
    lock = threading.Lock()

    def work() -> None:
        while not stop.is_set():
            with lock:
                item = next(todo, None)
            if item is None:
                return
            try:
                outcome = make(item)
                journal.note_done(item.key, outcome)
                results.put((item, None))
            except BaseException as e:
                results.put((item, e))

    # daemons: a second Ctrl-C need not wait for the answer to a request
    workers = [
        threading.Thread(target=work, daemon=True, name=f"synthesis-{n}")
        for n in range(max(1, min(parallel, len(left))))
    ]
    for worker in workers:
        worker.start()
    try:
        _collect(workers, results, tally, stop, patience, advance)
    except KeyboardInterrupt as e:
        stop.set()
        tally.error = e
        say("stopping: waiting for requests under way (Ctrl-C again: not even that)")
        # without `advance`, which may be what raises an interrupt that was lost, again and again
        _collect(workers, results, tally, stop, patience, lambda _: None)
    return tally


def _collect(
    workers: Iterable[threading.Thread],
    results: "queue.SimpleQueue[tuple[Item, Any]]",
    tally: Tally,
    stop: threading.Event,
    patience: int,
    advance: Callable[[int], None],
) -> None:
    """Take results until the workers are done; sets `stop` where the run cannot go on."""
    in_a_row = 0
    while True:
        alive = any(worker.is_alive() for worker in workers)
        try:
            item, error = results.get(timeout=0.05 if alive else 0)
        except queue.Empty:
            if alive:
                continue
            return
        if error is None:
            in_a_row = 0
            tally.finished += 1
            advance(1)
        elif isinstance(error, Failed):
            in_a_row += 1
            tally.failed.append((item.key, str(error)))
            if in_a_row == patience and tally.error is None:
                tally.error = UserError(
                    f"the endpoint failed on {in_a_row} pictures one after the other, last: {error}"
                )
                stop.set()
        elif isinstance(error, BadRecord):
            tally.bad.append((item.key, str(error)))
            advance(1)
        elif not isinstance(error, Stopped):
            if tally.error is None:
                tally.error = error
            stop.set()

"""Several processes of one program: how they find each other, and what they tell each other.

One process of a program that nobody started as several is all of them: every function works there
and costs nothing.
"""

import os
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mg_jax.errors import UserError

T = TypeVar("T")
HEARTBEAT = 100  # seconds without a sign of a process until the others give up


class Apart(RuntimeError):
    """The processes of a program did not find each other in time."""


def start(
    coordinator: str = "", count: int = 0, index: int = -1, heartbeat: int = HEARTBEAT
) -> None:
    """Join the other processes; call before anything else touches jax.

    Without arguments jax finds them itself: on a TPU slice, under SLURM, in Kubernetes, with MPI.
    Otherwise `coordinator` is host:port of process 0, the same for all, `count` the number of
    processes and `index` this one's. A process that shows no sign of life for `heartbeat` seconds
    ends all. Raises UserError for wrong arguments, and where nothing tells of the others; Apart
    when they do not find each other, which another start may mend.
    """
    given = (coordinator != "", count > 0, index >= 0)
    if any(given) and not all(given):
        raise UserError("--coordinator, --processes and --process belong together: give all three")
    names = ("coordinator_address", "num_processes", "process_id")
    options: Any = zip(names, (coordinator, count, index), strict=True) if all(given) else ()
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat, **dict(options))
    except ValueError as e:
        raise UserError(
            f"nothing tells of the other processes ({_first_line(e)}): start one with "
            "--coordinator HOST:PORT --processes N --process I each, or run under SLURM, "
            "Kubernetes or on a TPU slice, where --distributed is enough"
        ) from e
    except RuntimeError as e:  # such as a machine that was not up in time
        raise Apart(f"the processes did not find each other ({_first_line(e)})") from e


def _first_line(e: Exception) -> str:
    return str(e).split("\n")[0][:200]


def several() -> bool:
    """Whether there are other processes."""
    return jax.process_count() > 1


def own(name: str) -> str:
    """The name of a file that every process writes for itself: a.txt, or a.2.txt in the third."""
    stem, _, kind = name.rpartition(".")
    return f"{stem}.{jax.process_index()}.{kind}" if several() else name


def stopping(step: int) -> bool:
    """Whether some process got SIGTERM and `step` is the one at which all of them stop.

    With several processes this is asked at every step, in order; the answer is the same in all.
    """
    return several() and multihost_utils.reached_preemption_sync_point(step)


def together(name: str) -> None:
    """Return once every process has come here."""
    if several():
        multihost_utils.sync_global_devices(name)


def all_agree(fine: bool) -> bool:
    """Whether every process says so; called by all of them together."""
    if several():
        fine = bool(np.asarray(multihost_utils.process_allgather(np.int32(fine))).min())
    return fine


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of `items`; the parts of all processes make up the whole."""
    return items[jax.process_index() :: jax.process_count()]


def gather(mine: Sequence[T], total: int) -> list[T]:
    """What every process made of its `share` of `total` items, in the order of the whole.

    Called by all processes together; they need not hold equally many.
    """
    if not several():
        return list(mine)
    data = np.frombuffer(pickle.dumps(list(mine)), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(data.size))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: data.size] = data
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    parts = [pickle.loads(row[:n].tobytes()) for row, n in zip(rows, sizes, strict=True)]
    return [parts[i % len(parts)][i // len(parts)] for i in range(total)]


def divided(answer: Callable[[Sequence[Any]], Sequence[Any]]) -> Callable[[Sequence[Any]], list]:
    """`answer`, each process seeing its share of the questions and getting all the answers."""

    def together(questions: Sequence[Any]) -> list:
        mine = share(questions)
        return gather(list(answer(mine)) if len(mine) else [], len(questions))

    return together


def leave(code: int) -> None:
    """End this process at once, without the farewell that waits for processes that have gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

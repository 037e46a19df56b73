"""What a run shows and leaves: progress bar, metrics.jsonl, TensorBoard, loss curve; signals."""

import datetime
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mg_jax.checkpoint import disk_errors

PREEMPTED, INTERRUPTED = 75, 130  # exit codes after SIGTERM and after Ctrl-C
DIVERGED = 65  # and after a loss that is not finite: another start would get there again
PLAIN_SECONDS = 5.0  # without a terminal: at most one line in this time


class Stop:
    """Context in which SIGTERM and Ctrl-C only set `code`; a second Ctrl-C stops at once.

    `term`: False leaves SIGTERM alone, to whatever else listens for it.
    """

    def __init__(self, term: bool = True):
        self.code, self._term = 0, term

    def __enter__(self) -> "Stop":
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT) if self._term else (signal.SIGINT,):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if number == signal.SIGINT and self.code == INTERRUPTED:
            raise KeyboardInterrupt
        self.code = PREEMPTED if number == signal.SIGTERM else INTERRUPTED
        name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
        again = "" if number == signal.SIGTERM else " (again to stop at once, without saving)"
        print(f"\n{name}: saving after this step{again}", file=sys.stderr, flush=True)


class Metrics:
    """Numbers of a run: `metrics.jsonl` and TensorBoard files under `folder`.

    On resuming at `step`, lines of later steps (written by a run that was then killed) and a
    torn last line are dropped, so that each step stands there once.
    """

    def __init__(self, folder: Path, step: int = 0, tensorboard: bool = True):
        self.path = Path(folder) / "metrics.jsonl"
        kept = [r for r in read_metrics(self.path) if r["step"] <= step]
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_name("metrics.jsonl.tmp")
            part.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
            part.rename(self.path)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        self._board: Any = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the numbers of a step. Raises UserError when the disk is full."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}  # JSON has no NaN
        with disk_errors(self.path):
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._file.flush()
            if self._board is not None:
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Return when the disk, or a bucket that is mounted, has the lines of metrics.jsonl."""
        with disk_errors(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close the files."""
        with disk_errors(self.path):
            self._file.close()
            if self._board is not None:
                self._board.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Records of a metrics.jsonl; a torn line is left out, a missing file is empty."""
    records = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "step" in record:
                records.append(record)
    return records


class Bar:
    """Loss, speed and time left: a bar on a terminal, else a line every few seconds."""

    def __init__(self, name: str, start: int, total: int, *, show: bool = True):
        self.name, self.start, self.step, self.total, self._show = name, start, start, total, show
        self._begin: tuple[float, int] | None = None
        self._last_line = 0.0
        self._rich: Any = None

    def __enter__(self) -> "Bar":
        if self._show and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._rich = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TextColumn("{task.completed}/{task.total}  {task.fields[text]}"),
                console=Console(stderr=True),
            )
            self._rich.start()
            self._task = self._rich.add_task(
                self.name, total=self.total, completed=self.start, text="compiling"
            )
        return self

    def __exit__(self, *_) -> None:
        if self._rich is not None:
            self._rich.stop()

    @property
    def speed(self) -> float:
        """Steps a second since the second step of this run (the first one compiles)."""
        if self._begin is None or self.step == self._begin[1]:
            return 0.0
        return (self.step - self._begin[1]) / (time.monotonic() - self._begin[0])

    def update(self, step: int, loss: float) -> None:
        """Step number `step` is done."""
        self.step, now = step, time.monotonic()
        if self._begin is None:
            self._begin = now, step
        if not self._show:
            return
        left = ""
        if self.speed:
            seconds = round((self.total - step) / self.speed)
            left = f"  {self.speed:.2f} steps/s  {datetime.timedelta(seconds=seconds)} left"
        text = f"loss {loss:.4f}{left}"
        if self._rich is not None:
            self._rich.update(self._task, completed=step, text=text)
        elif step in (self.start + 1, self.total) or now - self._last_line > PLAIN_SECONDS:
            self._last_line = now
            print(f"{self.name}  step {step}/{self.total}  {text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._rich is not None:
            self._rich.console.print(text, markup=False, highlight=False)
        elif self._show:
            print(text, file=sys.stderr, flush=True)


def draw_curve(folder: Path, title: str) -> Path | None:
    """`loss.png` from metrics.jsonl: every logged loss, and its running mean. None if too few."""
    return draw_curves({title: Path(folder)}, Path(folder) / "loss.png")


def draw_curves(folders: Mapping[str, Path], path: Path) -> Path | None:
    """The curves of runs by their titles side by side in one picture; None if all are too short."""
    curves = {}
    for title, folder in folders.items():
        records = [r for r in read_metrics(folder / "metrics.jsonl") if "loss" in r]
        if len(records) >= 2:
            curves[title] = [r["step"] for r in records], [r["loss"] for r in records]
    if not curves:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = 7 if len(curves) == 1 else 4.5 * len(curves)
    figure = Figure(figsize=(width, 4), dpi=110 if len(curves) == 1 else 75, layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (title, (steps, losses)) in zip(places, curves.items(), strict=True):
        axes.plot(steps, losses, color="#a8c5e2", linewidth=0.8, label="logged")
        axes.plot(steps, _smooth(losses), color="#1f5a94", linewidth=1.8, label="running mean")
        axes.set(title=title, xlabel="step", ylabel="loss")
        if min(losses) > 0 and max(losses) > 20 * min(losses):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with disk_errors(path):
        figure.savefig(path)
    return path


def _smooth(losses: list[float]) -> list[float]:
    keep = 1 - 1 / max(2.0, min(50.0, len(losses) / 20))
    total, weight, out = 0.0, 0.0, []
    for loss in losses:
        total, weight = keep * total + (1 - keep) * loss, keep * weight + (1 - keep)
        out.append(total / weight)
    return out

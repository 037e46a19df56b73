"""Progress in bytes: a bar on a terminal, else a line every few seconds."""

import sys
import time
from typing import Any

PLAIN_SECONDS = 5.0  # without a terminal: at most one line in this time


class Bytes:
    """The bar of one task of `total` bytes; `advance` moves it.

    Speed counts what was done here, not what `skip` says was there before.
    """

    def __init__(self, name: str, total: int):
        self.name, self.total, self.done, self._skipped = name, total, 0, 0
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

    def skip(self, count: int) -> None:
        """`count` bytes were done by an earlier run."""
        self.done += count
        self._skipped += count
        if self._rich is not None:
            self._rich.reset(self._task, completed=self.done)

    def advance(self, count: int) -> None:
        """`count` bytes more are done."""
        self.done += count
        if self._rich is not None:
            self._rich.advance(self._task, count)
            return
        now = time.monotonic()
        if now - self._last > PLAIN_SECONDS:
            self._last = now
            speed = (self.done - self._skipped) / 2**20 / (now - self._begin)
            amount = f"{self.done / 2**30:.2f} of {self.total / 2**30:.2f} GiB"
            print(f"{self.name}  {amount}  {speed:.0f} MiB/s", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._rich is not None:
            self._rich.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

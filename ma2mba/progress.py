"""Progress of long work on stderr: a bar with time left on a terminal, a plain line now and then elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY = 10.0
"""Seconds between two plain lines."""


class Reporter:
    """Counts finished items out of `total`; `note` is shown beside the count (for example the number of rejects)."""

    def __init__(self, title: str, total: int, done: int = 0):
        self.title, self.total, self.done, self.begun_with = title, total, done, done
        self.note = ""
        self._started = self._spoken = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            self._bar = Progress(*columns, *times, console=Console(stderr=True))
            self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> "Reporter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more items are finished."""
        self.done += count
        self.note = note
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, completed=self.done, note=note)
        elif now - self._spoken >= LINE_EVERY:
            self._spoken = now
            print(self._line(now - self._started), file=sys.stderr, flush=True)

    def _line(self, elapsed: float) -> str:
        fresh = self.done - self.begun_with
        left = elapsed / fresh * (self.total - self.done) if fresh > 0 else 0.0
        return f"{self.title}: {self.done}/{self.total}{', ' + self.note if self.note else ''}, {left:.0f} s left"

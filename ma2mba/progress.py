"""Report the progress of long work on stderr: a progress bar on a terminal, otherwise a line every few seconds."""

import sys
import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ma2mba.terminal import Terminal, write_error

LINE_SECONDS = 10.0
"""Seconds between two lines where stderr is not a terminal."""


class Reporter:
    """Counts finished items out of `total`, of which `done` were finished before the start.

    Use as a context manager. `note` appears after the count, for example the number of rejected items. The time left
    is shown as long as items finish at the expected rate. It is hidden when the last items take longer.
    """

    def __init__(self, title: str, total: int, done: int = 0):
        self.title, self.total, self.done, self._done_at_start = title, total, done, done
        self.note = ""
        self._started = self._last_line = self._last_item = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            times = (TimeElapsedColumn(), TextColumn("{task.fields[left]}", markup=False))
            self._bar = Progress(*columns, *times, console=Terminal(stderr=True))
            self._task = self._bar.add_task(title, total=total, completed=done, note="", left="")

    def __enter__(self) -> "Reporter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more finished items and show `note`."""
        self.done += count
        self.note = note
        now = time.monotonic()
        if count:
            self._last_item = now
        if self._bar:
            self._bar.update(self._task, completed=self.done, note=note, left=self._left(now))
        elif now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            write_error(", ".join(filter(None, (self._count(), self.note, self._left(now)))) + "\n")

    def _count(self) -> str:
        return f"{self.title}: {self.done}/{self.total}"

    def _left(self, now: float) -> str:
        """Return the time left as words, "" if it is unknown."""
        fresh = self.done - self._done_at_start
        if self.done >= self.total:
            return "finishing"
        left = (now - self._started) / fresh * (self.total - self.done) if fresh > 0 else 0.0
        if left <= now - self._last_item:
            return ""
        return f"{left:.0f} s left" if left < 120 else f"{left / 60:.0f} min left"

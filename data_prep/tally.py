"""How far each unfinished shard is: a small file in the work folder, for the progress of a build."""

import time
from contextlib import suppress
from pathlib import Path

EVERY = 1.0
"""Seconds between two writes."""


class Tally:
    """Counts the frames and the seconds of video of a shard while it is built, and writes them to `folder`.

    Another process reads them with `read_tally`. A tally is for people: nothing depends on it.
    """

    def __init__(self, folder: Path, shard: int, fps: float):
        self._path, self._fps = _path(folder, shard), fps
        self._frames, self._seconds, self._open = 0, 0.0, 0
        self._written = time.monotonic()

    def begin(self) -> None:
        """Begin a sample. What was counted of the sample before does not count, unless `end` was called."""
        self._open = 0

    def frame(self) -> None:
        """Count a picture of the current sample."""
        self._open += 1
        self._write()

    def end(self, frames: int, seconds: float) -> None:
        """Count a finished sample, with all its frames."""
        self._frames, self._seconds, self._open = self._frames + frames, self._seconds + seconds, 0
        self._write()

    def _write(self) -> None:
        now = time.monotonic()
        if now - self._written >= EVERY:
            self._written = now
            with suppress(OSError):
                self._path.write_text(f"{self._frames + self._open} {self._seconds + self._open / self._fps}")


def read_tally(folder: Path, shard: int) -> tuple[int, float]:
    """Return the frames and the seconds of video of an unfinished shard so far; (0, 0.0) if nothing is known."""
    try:
        frames, seconds = _path(folder, shard).read_text().split()
        return int(frames), float(seconds)
    except (OSError, ValueError):
        return 0, 0.0


def remove_tally(folder: Path, shard: int) -> None:
    """Remove what an interrupted build has left."""
    _path(folder, shard).unlink(missing_ok=True)


def _path(folder: Path, shard: int) -> Path:
    return folder / f"part-{shard:05d}.tally"

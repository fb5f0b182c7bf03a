"""Heartbeat files in RUN/alive: detect a rank that vanished with its node. NCCL may wait for such a rank for days.

Each rank refreshes its own file and reads the file of the next rank. Each rank measures time with its own clock only,
so the clocks of the nodes may differ.
"""

import time
from contextlib import suppress
from pathlib import Path

ALIVE = "alive"
BEAT_SECONDS = 10.0
LOST_SECONDS = 180.0
"""A rank without a heartbeat for this long is lost. A network file system shows a changed file much sooner."""


class Heartbeat:
    """This rank's heartbeat, and its view of the next rank's heartbeat. A run of one rank needs neither."""

    def __init__(self, run: Path, rank: int, ranks: int):
        self.folder, self.next_rank = run / ALIVE, (rank + 1) % ranks
        self._own_file, self._next_file = (self.folder / f"rank-{r}" for r in (rank, self.next_rank))
        self._alone = ranks == 1
        self._beaten_at, self._changed_at = float("-inf"), time.monotonic()
        self._seen: int | None = None

    def beat(self) -> None:
        """Refresh this rank's file when it is due. If it cannot be written now, the next call tries again."""
        now = time.monotonic()
        if self._alone or now - self._beaten_at < BEAT_SECONDS:
            return
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._own_file.write_text(str(time.time_ns()), encoding="ascii")
            self._beaten_at = now

    def lost(self) -> bool:
        """Return True if the next rank's file exists but has not changed for LOST_SECONDS."""
        if self._alone:
            return False
        try:
            seen: int | None = int(self._next_file.read_text(encoding="ascii") or 0)
        except (OSError, ValueError):
            seen = None
        now = time.monotonic()
        if seen is None or seen != self._seen:
            self._seen, self._changed_at = seen, now
        return seen is not None and now - self._changed_at > LOST_SECONDS

    def end(self) -> None:
        """Remove this rank's file: the rank has ended normally and is not lost."""
        with suppress(OSError):
            self._own_file.unlink(missing_ok=True)

"""Signs of life in RUN/alive: a rank that vanished with its whole node says nothing, and NCCL may wait for it for days.

Each rank refreshes a file of its own and looks at that of the next rank. Times of files are only compared with each
other: nodes need not agree on the time.
"""

import time
from contextlib import suppress
from pathlib import Path

ALIVE = "alive"
BEAT_SECONDS = 10.0
LOST_SECONDS = 180.0
"""Without a sign for so long a rank is lost: several times what a network file system keeps a file's time back."""


class Heartbeat:
    """This rank's sign, and what it has seen of the next rank's."""

    def __init__(self, run: Path, rank: int, ranks: int):
        self.folder, self.neighbour = run / ALIVE, (rank + 1) % ranks
        self._own, self._next = (self.folder / f"rank-{r}" for r in (rank, self.neighbour))
        self._alone = ranks == 1
        self._beaten, self._changed = float("-inf"), time.monotonic()
        self._seen: int | None = None

    def beat(self) -> None:
        """Refresh the sign if it is time. A run folder that cannot be written now is tried again at the next call."""
        now = time.monotonic()
        if self._alone or now - self._beaten < BEAT_SECONDS:
            return
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._own.write_text(str(time.time_ns()), encoding="ascii")
            self._beaten = now

    def lost(self) -> bool:
        """Whether the next rank has given signs, but none for too long. One that has ended well has none to give."""
        if self._alone:
            return False
        try:
            seen: int | None = int(self._next.read_text(encoding="ascii") or 0)
        except (OSError, ValueError):
            seen = None
        now = time.monotonic()
        if seen is None or seen != self._seen:
            self._seen, self._changed = seen, now
        return seen is not None and now - self._changed > LOST_SECONDS

    def end(self) -> None:
        """This rank has ended well."""
        with suppress(OSError):
            self._own.unlink(missing_ok=True)

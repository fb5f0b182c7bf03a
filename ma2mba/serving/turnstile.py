"""Let so many uploads run at the same time, of each owner and in all. Others wait for their turn."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ma2mba.serving.contract import Busy

RUNNING, RUNNING_EACH = 32, 4
"""Uploads and fetches that run at the same time, of all owners and of each."""
WAITING, WAITING_EACH = 256, 64
"""Uploads and fetches that run or wait."""


class Turnstile:
    """Counts what runs and what waits."""

    def __init__(self) -> None:
        self.coming: Counter[str] = Counter()
        """Uploads and fetches of each owner that run or wait."""
        self._all = asyncio.Semaphore(RUNNING)
        self._each: dict[str, asyncio.Semaphore] = {}

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it during the block. Raise Busy if too many wait."""
        if self.coming[owner] >= WAITING_EACH:
            raise Busy(f"{WAITING_EACH} of your media are coming already. Wait for one of them", 5)
        if self.coming.total() >= WAITING:
            raise Busy("too many media are coming at the moment. Try again", 10)
        self.coming[owner] += 1
        try:
            async with self._each.setdefault(owner, asyncio.Semaphore(RUNNING_EACH)), self._all:
                yield
        finally:
            self.coming[owner] -= 1
            if not self.coming[owner]:
                del self.coming[owner], self._each[owner]

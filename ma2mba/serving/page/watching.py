"""The reading of a visitor's video: it goes on while a window shows it, and a little longer."""

import asyncio
from collections.abc import AsyncGenerator

from ma2mba.serving.contract import Progress, Reading

LINGER_SECONDS = 60.0
"""Seconds for which a reading that no window shows goes on: long enough to load the page again."""
OVER = ("ready", "failed")


class Watch:
    """Keeps a reading for the windows that show it."""

    def __init__(self, reading: Reading):
        self._reading, self._windows = reading, 0
        self._timer: asyncio.TimerHandle | None = None
        self.released = False

    @property
    def progress(self) -> Progress:
        return self._reading.progress

    async def events(self) -> AsyncGenerator[Progress, None]:
        """Yield the progress now, and after each change, until the video is read or cannot be read."""
        self._windows += 1
        if self._timer:
            self._timer.cancel()
        try:
            async for progress in self._reading.events():
                yield progress
        finally:
            self._windows -= 1
            if self.progress.state in OVER:
                self.release()
            elif not self._windows and not self.released:
                self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self.release)

    def release(self) -> None:
        """Say that this visitor waits for the reading no longer."""
        if not self.released:
            self.released = True
            self._reading.release()

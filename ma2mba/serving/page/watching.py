"""The reading of a visitor's video: it goes on while a window shows it, and a little longer."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from ma2mba.serving.contract import Progress, Reading

LINGER_SECONDS = 60.0
"""Seconds for which a reading that no window shows goes on: long enough to load the page again."""
OVER = ("ready", "failed")


class Watch:
    """Keeps a reading for the windows that show it. `let_go` is called when it is kept no longer."""

    def __init__(self, reading: Reading, let_go: Callable[[], None]):
        self._reading, self._let_go, self._windows = reading, let_go, 0
        self._released = False
        self._timer = self._linger()

    @property
    def progress(self) -> Progress:
        return self._reading.progress

    @property
    def useful(self) -> bool:
        """Whether the video is read, or is being read."""
        return self.progress.state == "ready" or not (self._released or self.progress.state == "failed")

    async def events(self) -> AsyncGenerator[Progress, None]:
        """Yield the progress now, and after each change, until the video is read or cannot be read."""
        self._windows += 1
        self._timer.cancel()
        try:
            async for progress in self._reading.events():
                yield progress
        finally:
            self._windows -= 1
            if self.progress.state in OVER:
                self.release()
            elif not self._windows:
                self._timer = self._linger()

    def _linger(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(LINGER_SECONDS, self.release)

    def release(self) -> None:
        """Say that this visitor waits for the reading no longer."""
        self._timer.cancel()
        if not self._released:
            self._released = True
            self._reading.release()
            self._let_go()

"""Browser windows that show the page: what runs for a window stops soon after the window is closed."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")

GRACE_SECONDS = 5.0
"""Seconds between the end of a window's last stream and the stop of what runs for it: a stream may be opened again."""


class Tab:
    """One window. Gradio calls it a session, and names it by a number that the browser has drawn.

    shown    id of the video that the window shows
    used     whether the window has sent an event
    """

    def __init__(self) -> None:
        self.shown = ""
        self.used = False
        self._streams = 0
        self._tasks: dict[str, asyncio.Task] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether the window waits for results."""
        return bool(self._streams)

    def joined(self) -> None:
        """Say that the window has sent an event. It opens a stream for the results soon."""
        self.used = True
        self._wait(1 if self._streams else None)

    def opened(self) -> None:
        """Say that the window listens to a stream of results."""
        self._streams += 1
        self._wait(self._streams)

    def closed(self) -> None:
        """Say that a stream has ended: all results were sent, or the window is gone."""
        self._streams -= 1
        self._wait(self._streams)

    def _wait(self, streams: int | None) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = None if streams else asyncio.get_running_loop().call_later(GRACE_SECONDS, self.stop)

    def start(self, name: str, task: asyncio.Task) -> None:
        """Stop what has this name in the window, and remember `task` under it."""
        self.stop(name)
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._tasks.get(name) is done and self._tasks.pop(name))

    def stop(self, name: str = "") -> None:
        """Stop the task of a name, or all tasks."""
        for key in [name] if name else list(self._tasks):
            if task := self._tasks.pop(key, None):
                task.cancel()


async def newest(source: AsyncGenerator[T, None], tab: Tab, name: str, every: float) -> AsyncGenerator[T, None]:
    """Yield the newest value of `source`, at most one in `every` seconds, and always the last.

    Ends early when `tab` stops `name`. `source` is closed in any case.
    """
    values: list[T] = []
    changed = asyncio.Event()

    async def pump() -> None:
        async with aclosing(source) as opened:
            async for value in opened:
                values[:] = [value]
                changed.set()

    task = asyncio.create_task(pump())
    task.add_done_callback(lambda _: changed.set())
    tab.start(name, task)
    try:
        while values or not task.done():
            await changed.wait()
            changed.clear()
            if values:
                yield values.pop()
            if not task.done():
                await asyncio.sleep(every)
        if not task.cancelled():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

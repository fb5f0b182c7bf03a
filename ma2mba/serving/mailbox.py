"""From the engine's thread to asyncio: items in order, and news of which only the last counts."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Items from any thread to one coroutine, in order."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._news = News()

    def put(self, item: T) -> None:
        self._items.append(item)
        self._news.tell()

    async def get(self) -> T:
        """Return the next item, and wait for it."""
        if self._items:
            return self._items.popleft()
        with self._news.listen() as told:
            while not self._items:
                await told.wait()
                told.clear()
        return self._items.popleft()


class News:
    """Lets any thread wake the coroutines that listen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def tell(self) -> None:
        with self._lock:
            listeners = list(self._listeners.items())
        for told, loop in listeners:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(told.set)

    @contextlib.contextmanager
    def listen(self) -> Iterator[asyncio.Event]:
        """Give an event of asyncio that each `tell` sets. Look at the news after entering, before waiting."""
        told = asyncio.Event()
        with self._lock:
            self._listeners[told] = asyncio.get_running_loop()
        try:
            yield told
        finally:
            with self._lock:
                self._listeners.pop(told, None)

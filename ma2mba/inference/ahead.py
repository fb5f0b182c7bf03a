"""Make the next item in a thread while the caller uses the item before."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
END = object()


@contextmanager
def ahead(items: Iterator[T], cancel: Callable[[], None]) -> Iterator[Iterator[T]]:
    """Give an iterator over `items` whose next item a thread makes while the caller uses the item before.

    The thread begins an item when the caller takes the one before: two items exist at most. What `items` raises is
    raised to the caller. If the block ends before `items` do, `cancel` is called, and must let `items` raise soon.
    """
    taken, ended, stopped = threading.Semaphore(0), threading.Event(), threading.Event()
    made = SimpleQueue[tuple[Any, BaseException | None]]()

    def make() -> None:
        error = None
        try:
            for item in items:
                made.put((item, None))
                taken.acquire()
                if stopped.is_set():
                    return
        except BaseException as caught:
            error = caught
        ended.set()
        made.put((END, error))

    def take() -> Iterator[T]:
        while True:
            item, error = made.get()
            if error:
                raise error
            if item is END:
                return
            taken.release()
            yield item

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        if not ended.is_set():
            stopped.set()
            cancel()
            taken.release()
        thread.join()

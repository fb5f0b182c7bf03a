"""SIGTERM and SIGUSR1, by which a cluster says that it takes the machine back: acted on between micro-batches.

A step that is under way is given up: nothing of it has reached the weights before its last micro-batch.
"""

import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """All ranks have agreed to stop; says which signal asked for it, here or on another rank."""


class Ranks(Protocol):
    """What agreement needs of the engine."""

    @property
    def reduces_late(self) -> bool: ...

    def any_rank(self, asks: bool) -> bool: ...


class Interruption:
    """While it is entered, either signal only sets `name`, as "SIGTERM". In the main thread only."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def checked(self, batches: Iterator[T], count: int, ranks: Ranks) -> Iterator[T]:
        """The `count` micro-batches of a step; raises Stopped on all ranks, before one waits for another.

        The ranks ask each other where they would meet in the micro-batch to come anyway; elsewhere a rank that was
        signalled goes to that meeting at once.
        """
        for number in range(1, count + 1):
            meets = number == count or not ranks.reduces_late
            if (meets or self.name) and ranks.any_rank(self.name is not None):
                raise Stopped(self.name or "signal to another rank")
            yield next(batches)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name

"""SIGTERM and SIGUSR1, by which a cluster says that it takes the machine back: acted on between two chunks.

A step that is under way is given up: nothing of it has reached the weights before all ranks have their gradients.
"""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Protocol, TypeVar

from ma2mba.training.agreement import Agreement

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """All ranks have agreed to stop; says which signal asked for it, here or on another rank."""


class Ranks(Protocol):
    """What is needed of the engine: an agreement if ranks wait for each other at a step's end alone."""

    @property
    def agreement(self) -> Agreement | None: ...

    def any_rank(self, asks: bool) -> bool: ...


@dataclass(frozen=True)
class Breaks:
    """Where a micro-batch may be given up: before every chunk, and in a step's last one when its gradients are there,
    before ranks wait for each other. What is called there raises Stopped."""

    chunk: Callable[[], None]
    end: Callable[[], None] | None


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

    def checked(self, batches: Iterator[T], count: int, ranks: Ranks) -> Iterator[tuple[T, Breaks | None]]:
        """The `count` micro-batches of a step; raises Stopped on all ranks, before one waits for another.

        With an agreement also within a micro-batch, at its `Breaks`. Without one ranks meet in every micro-batch: they
        ask each other before it.
        """
        agreement = ranks.agreement
        for number in range(1, count + 1):
            breaks = self._breaks(agreement, last=number == count) if agreement else None
            if breaks:
                breaks.chunk()
            elif ranks.any_rank(self._asks()):
                raise self._stopped()
            yield next(batches), breaks

    def _breaks(self, agreement: Agreement, last: bool) -> Breaks:
        def chunk() -> None:
            if agreement.given_up(self._asks()):
                raise self._stopped()

        def end() -> None:
            if not agreement.arrive(self._asks):
                raise self._stopped()

        return Breaks(chunk, end if last else None)

    def _asks(self) -> bool:
        return self.name is not None

    def _stopped(self) -> Stopped:
        return Stopped(self.name or "signal to another rank")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name

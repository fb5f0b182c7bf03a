"""SIGTERM and SIGUSR1, by which a cluster says that it takes the machine back: acted on between two chunks.

A step that is under way is given up: nothing of it has reached the weights before all ranks have their gradients.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, TypeVar

from ma2mba.training.faults.stop_vote import StopVote

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """All ranks have agreed to stop; says which signal asked for it, here or on another rank."""


@dataclass(frozen=True)
class StopPoints:
    """Where a micro-batch may be given up; what is called there raises Stopped.

    chunk  before every chunk.
    turn   between forward and backward, before ranks wait for each other.
    end    when its gradients are there, before ranks wait for each other.
    """

    chunk: Callable[[], None]
    turn: Callable[[], None]
    end: Callable[[], None]


class Interruption:
    """While it is entered, by the main thread, either signal only sets `name`, as "SIGTERM".

    On a GPU backward runs in another thread, while the main one waits for it and calls no handler: a pipe tells it.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup_before = -1

    def __enter__(self) -> "Interruption":
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        for end in self._pipe or ():
            os.close(end)
        self._pipe = None

    def checked(
        self, batches: Iterator[T], count: int, agreement: StopVote, zero_stage: int
    ) -> Iterator[tuple[T, StopPoints]]:
        """The `count` micro-batches of a step; raises Stopped on all ranks, before one waits for another.

        They wait for each other where the last one's gradients are summed, from ZeRO 2 on every one's, and with ZeRO 3
        before forward and before backward too, where the weights are gathered.
        """

        def chunk() -> None:
            if agreement.given_up(self._asks()):
                raise self._stopped()

        def meet() -> None:
            if not agreement.arrive(self._asks):
                raise self._stopped()

        gathered = meet if zero_stage == 3 else _go_on
        for number in range(1, count + 1):
            chunk()
            batch = next(batches)
            gathered()
            yield batch, StopPoints(chunk, gathered, meet if zero_stage > 1 or number == count else _go_on)

    def _asks(self) -> bool:
        if self.name is None and self._pipe:
            with suppress(BlockingIOError):
                for number in os.read(self._pipe[0], 64):
                    if number in SIGNALS:
                        self._note(number, None)
        return self.name is not None

    def _stopped(self) -> Stopped:
        return Stopped(self.name or "signal to another rank")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name


def _go_on() -> None:
    """Ranks do not wait for each other here."""

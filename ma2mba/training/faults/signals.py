"""Listen for SIGTERM and SIGUSR1, with which a cluster takes its machine back."""

import os
import signal
from contextlib import suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class SignalListener:
    """Keep the name of the last signal, as "SIGTERM", instead of ending the process. The main thread enters it.

    On a GPU backward runs in another thread, while the main thread waits in C++ and runs no Python handler. Python's
    wakeup pipe gets the signal's number even then, and any thread can read the pipe.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup_before = -1

    def __enter__(self) -> "SignalListener":
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        for end in self._pipe or ():
            os.close(end)
        self._pipe = None

    def received(self) -> bool:
        """Return True when this process has received one of the signals. Any thread may call it."""
        if self.name is None and self._pipe:
            with suppress(BlockingIOError):
                for number in os.read(self._pipe[0], 64):
                    if number in SIGNALS:
                        self._note(number, None)
        return self.name is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name

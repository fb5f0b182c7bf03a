"""The pictures of one video, block by block, while a worker decodes the next ones.

Nothing is queued here: the worker waits as soon as the pipe between the processes is full. So memory does not grow with
the video.

M pictures, N frames, C colours, H and W pixels.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ma2mba.errors import UserError
from ma2mba.video.decode import Plan
from ma2mba.video.errors import MediaError
from ma2mba.video.pool import Pool, Task


@dataclass(frozen=True)
class Block:
    """Pictures `first`, `first` + 1, ... of a plan, uint8 RGB."""

    first: int
    pictures_MCHW: np.ndarray


class StartAgain(Exception):
    """The file is decoded again, because the times of its packets are wrong: what was read so far does not count.

    The stream has a new plan, and gives its pictures from the first.
    """


class Cancelled(Exception):
    """The stream was cancelled while it was read."""


class VideoStream:
    """An iterator over the blocks of a video, in order. Use as a context manager.

    Reading it raises StartAgain if the file must be decoded again; read on then. It raises UserError if the file cannot
    be used, or if decoding hangs, crashes or exceeds a limit, and after a damaged video's last intact picture
    MediaError, whose `partial` says how many seconds are intact. With `keep_damaged` it ends there instead, and
    `damage` is this error.
    """

    def __init__(self, path: Path, pool: Pool, task: Task, stall: float, *, keep_damaged: bool = False):
        self.path, self._pool, self._keep_damaged = path, pool, keep_damaged
        self.damage: MediaError | None = None
        self._events = pool.events([task], stall)
        self._plan: Plan | None = None
        self._result: UserError | None = None
        self._received, self._ended, self._cancelled = 0, False, threading.Event()

    def __enter__(self) -> "VideoStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the worker unless it is finished. No other thread may read the stream at that time."""
        if not self._ended:
            self._ended = True
            self._events.close()
            self._pool.close()

    def cancel(self) -> None:
        """Let the thread that reads the stream end within a second: reading raises Cancelled."""
        self._cancelled.set()

    @property
    def plan(self) -> Plan:
        """What is decoded. Waits until the file's times are known, and raises what reading the stream raises."""
        if self._plan is None:
            self._plan = self._receive()
            assert isinstance(self._plan, Plan)
        return self._plan

    @property
    def shown_N(self) -> np.ndarray:
        """int64, frame n shows picture shown_N[n]."""
        return self.plan.shown_N

    @property
    def duration(self) -> float:
        """The length of the whole video in seconds, 0 for a picture."""
        return self.plan.duration

    @property
    def frames(self) -> int:
        """How many frames have come so far, also those that show a picture again."""
        return int(np.searchsorted(self.shown_N, self._received - 1, "right")) if self._received else 0

    @property
    def seconds(self) -> float:
        """How many seconds of the video have come so far."""
        return self.plan.seconds(self._received) if self._plan else 0.0

    def __iter__(self) -> "VideoStream":
        return self

    def __next__(self) -> Block:
        plan, item = self.plan, self._receive()
        if isinstance(item, Plan):
            self._plan, self._received = item, 0
            raise StartAgain
        if item is None:
            if self.damage:
                raise StopIteration
            if self._received != plan.pictures:
                raise RuntimeError(f"{self.path}: {self._received} of {plan.pictures} pictures came")
            raise StopIteration
        self._received = item.first + len(item.pictures_MCHW)
        return item

    def _receive(self) -> Any:
        """Return the next Plan or Block that the worker sends; None at the end."""
        try:
            for kind, _, value in self._events:
                if self._cancelled.is_set():
                    raise Cancelled
                if kind == "block":
                    return value
                if kind == "result":
                    self._result = value
        except UserError as error:
            self._ended = True
            raise UserError(f"{self.path}: {error}") from error
        self._ended = True
        if isinstance(self._result, MediaError) and self._result.partial is None and self._received:
            self._result.partial = self.seconds
        if isinstance(self._result, MediaError) and self._keep_damaged and self._received:
            self.damage = self._result
        elif self._result:
            raise self._result
        return None

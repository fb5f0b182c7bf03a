"""The pictures of one video, block by block, while workers decode the next ones.

A worker waits as soon as the pipe between the processes is full. Of a long video, several workers decode pieces; the
pictures of a few pieces are held until it is their turn. So memory does not grow with the video.

M pictures, N frames, C colours, H and W pixels.
"""

import logging
import threading
from collections import deque
from dataclasses import replace

import numpy as np

from ma2mba.errors import UserError
from ma2mba.video.decode import Plan
from ma2mba.video.errors import MediaError
from ma2mba.video.messages import Block, Joint, Piece, Request
from ma2mba.video.pieces import Pieces
from ma2mba.video.pool import Pool, Task
from ma2mba.video.seek import Divided, Doubt

log = logging.getLogger(__name__)


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
    MediaError, whose `partial` says how many seconds are intact. With `keep_damaged` in the request, it ends there
    instead, and `damage` is this error.
    """

    def __init__(self, request: Request, pool: Pool, stall: float):
        self.path, self.request, self._pool, self._stall = request.path, request, pool, stall
        self.damage: MediaError | None = None
        self._plan: Plan | None = None
        self._result: UserError | None = None
        self._received, self._ended, self._cancelled = 0, False, threading.Event()
        self._begin(request)

    def _begin(self, request: Request) -> None:
        self._tasks = deque([Task(0, [request])])
        self._pieces: Pieces | None = None
        self._events = self._pool.events(self._tasks, self._stall, self._allowed)

    def _allowed(self, task: Task) -> bool:
        return self._pieces is None or self._pieces.allowed(task.number)

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
            first = self._receive()
            assert isinstance(first, Plan)
            self._plan = first
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
        if item.first != self._received:
            raise RuntimeError(f"{self.path}: picture {item.first} came in the place of {self._received}")
        self._received = item.first + len(item.pictures_MCHW)
        return item

    def _receive(self) -> Plan | Block | None:
        """Return the next thing that the workers send; None at the end."""
        while True:
            try:
                item = self._next()
            except Doubt:
                log.debug("video: %s is decoded again by one process from its start", self.path)
                self._events.close()
                self._begin(replace(self.request, seek=False, workers=1))
                continue
            except UserError as error:
                self._ended = True
                raise UserError(f"{self.path}: {error}") from error
            if item is None:
                self._end()
            return item

    def _next(self) -> Plan | Block | None:
        """Return the next thing in order; None at the end. Raise Doubt if the pieces cannot be joined."""
        while True:
            if self._pieces and (block := self._pieces.take()):
                return block
            event = next(self._events, None)
            if self._cancelled.is_set():
                raise Cancelled
            if event is None:
                return None
            kind, task, value = event
            if kind == "result" and task:
                self._finish(task.number, value)
            elif kind == "block" and task and self._pieces:
                self._pieces.add(task.number, value)
            elif kind == "block":
                return value

    def _finish(self, number: int, result: UserError | Divided | Doubt | Joint | None) -> None:
        """Take the result of a request or of piece `number`."""
        if isinstance(result, Doubt):
            raise result
        if isinstance(result, Joint) and self._pieces:
            self._pieces.end(number, result)
        elif isinstance(result, Divided):
            pieces = [Piece(self.request, stretch, first, stop) for first, stop, stretch in result.pieces]
            self._pieces = Pieces(pieces, self.request.workers)
            self._pool.grow(min(self.request.workers, len(pieces)))
            self._tasks.extend(Task(place, [piece]) for place, piece in enumerate(pieces))
        elif isinstance(result, UserError):
            self._result = result
            if self._pieces:
                self._events.close()

    def _end(self) -> None:
        """Raise the reason why the file cannot be used, if any."""
        self._ended = True
        if isinstance(self._result, MediaError) and self._result.partial is None and self._received:
            self._result.partial = self.seconds
        if isinstance(self._result, MediaError) and self.request.keep_damaged and self._received:
            self.damage = self._result
        elif self._result:
            raise self._result

"""Watch a source while it comes: the frame shown at each second, as soon as the next frame says until when.

A watched worker process decodes. It waits until its pictures are taken, so that no frame is dropped and memory does
not grow; the source waits in turn, or its bytes wait on the disk.

The clock is the stream's own. At second k, a viewer sees the last frame whose time is not after k, counted from the
first frame: these are the frames that `decode_video` samples of the finished file. MPEG-TS and its like may restart
their clock: what follows continues where the stream was. In other formats a step forward is a long frame, and a step
back ends the watching. Both are told in one line. Damage ends the watching; what was seen before stays.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path

import numpy as np

from ma2mba.errors import UserError
from ma2mba.limits import limits, raise_limit
from ma2mba.video.errors import MediaError
from ma2mba.video.live_source import REMEDY, RTSP, Reading, Source, open_source, require_live
from ma2mba.video.pictures import clip_view
from ma2mba.video.pool import Beat, Pool, Task
from ma2mba.video.probe import clock_of, missing_bytes
from ma2mba.video.pyav import time_base
from ma2mba.video.shown import Damage, Shown, frames_of
from ma2mba.video.stream import Cancelled
from ma2mba.video.times import LARGEST_STEP, MOST_LATE, SECOND, SMALLEST_RETURN

FEW = 100
"""Frames before which some that come late prove nothing."""


@dataclass(frozen=True)
class Picture:
    """What is shown at `count` seconds from `second` on: uint8 RGB (C, H, W).

    `due`: about when the source had it, as time.monotonic counts.
    """

    second: int
    count: int
    picture_CHW: np.ndarray
    due: float


@dataclass(frozen=True)
class Notice:
    """Something about the stream that a viewer should know, in one line."""

    text: str


@dataclass(frozen=True)
class Ended:
    """Why the watching has ended. `damage`: why the source was not watched to its end; "" if it was."""

    reason: str
    damage: str = ""
    remedy: str = REMEDY


@dataclass(frozen=True)
class Request:
    source: Source
    image_size: int


class LiveStream:
    """An iterator over the Pictures and Notices of a source. Use as a context manager.

    The worker starts at once, the watching with `begin`. The iterator ends when the source does; `ended` then says why.
    It raises MediaError if not one picture could be read.
    """

    def __init__(self, name: str, idle: float):
        """`name`: "-" for standard input, the path of a file, or an rtsp:// URL. `idle`: seconds without data after
        which the source has ended. Raise MediaError if there is no such file.
        """
        require_live(Source(name, idle))
        fd = os.dup(0) if name == "-" else None
        path = name if fd is not None or name.startswith(RTSP) else os.path.abspath(name)
        self.source, self._fd = Source(path, idle, fd), fd
        self.name = Source(name, idle).shown
        self.ended: Ended | None = None
        self._pool = Pool(watch_item, 1, int(limits().decoder_gb * 1e9), () if fd is None else (fd,))
        self._cancelled, self._any = threading.Event(), False

    @property
    def label(self) -> str:
        """The name for state files: of a file, without its folder."""
        name = self.name if self.name.startswith(RTSP) else Path(self.name).name
        return name.encode(errors="backslashreplace").decode()

    def __enter__(self) -> "LiveStream":
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the worker. No other thread may read the stream at that time."""
        self._pool.close()
        if self._fd is not None:
            os.close(self._fd)

    def begin(self, image_size: int) -> None:
        """Let the worker start to read."""
        task = Task(0, [Request(self.source, image_size)])
        self._events = self._pool.events(deque([task]), self._stall())

    def cancel(self) -> None:
        """Let the thread that reads the stream end within a second or two: reading raises Cancelled."""
        self._cancelled.set()

    def __iter__(self) -> Iterator[Picture | Notice]:
        for kind, _, value in self._events:
            if self._cancelled.is_set():
                self._events.close()
                raise Cancelled
            if kind == "block":
                self._any = self._any or isinstance(value, Picture)
                yield value
            elif kind == "result":
                self.ended = value
        assert self.ended
        if not self._any:
            raise MediaError(self.name, self.ended.damage or self.ended.reason, self.ended.remedy)

    def _stall(self) -> float:
        """FFmpeg gives no sign of life while it waits for the network."""
        return limits().stall_seconds + (self.source.idle if self.source.name.startswith(RTSP) else 0)


def watch_item(task: Task, begin: Callable[[int], None], beat: Beat) -> Ended:
    """Watch the source of a task's one Request in a worker: send Pictures and Notices. Return why it has ended."""
    begin(0)
    try:
        if task.given_up:
            return Ended(task.given_up[0], task.given_up[0])
        return _watch(task.items[0], beat)
    except MediaError as error:
        return Ended(error.reason, error.reason, error.remedy)
    except UserError as error:
        return Ended(str(error), str(error))
    except MemoryError:
        reason = f"decoding it takes more than {limits().decoder_gb:g} GB of memory"
        return Ended(reason, reason, raise_limit("decoder_gb"))
    except ConnectionError:  # the parent has ended
        raise
    except Exception as error:  # the last guard: whatever a library raises for a stream must not end a chat
        reason = f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())})"
        return Ended(reason, reason)
    finally:
        begin(1)


def _watch(request: Request, beat: Beat) -> Ended:
    heard = time.monotonic()

    def alive() -> None:
        nonlocal heard
        heard = time.monotonic()
        beat()

    with open_source(request.source, beat) as (reading, container, stream):
        clock = clock_of(container, stream)
        seconds = _Seconds(request, reading, time_base(stream))
        damage, remedy, restarts = "", REMEDY, 0
        try:
            for shown in frames_of(seconds.path, container, stream, clock, alive):
                if clock.restarts > restarts:
                    restarts = clock.restarts
                    beat(Notice(f"its clock jumps after {seconds.next} s. The seconds count on without the jump"))
                for item in seconds.add(shown):
                    beat(item)
        except Damage as error:
            damage = str(error)
        except MediaError as error:
            damage, remedy = error.reason, error.remedy
        for item in seconds.rest():
            beat(item)
        network_idle = request.source.name.startswith(RTSP) and time.monotonic() - heard > 0.9 * request.source.idle
        if network_idle:
            return Ended(f"nothing came for {request.source.idle:g} s")
        if damage and not seconds.any and container.format.name.startswith("mov,"):
            damage = f"an MP4 file is watched only if it is fragmented, or its index comes first ({damage})"
        damage = damage or reading.damage
        if not damage and request.source.is_file:
            damage = missing_bytes(Path(request.source.name), container)
        reasons = dict.fromkeys(filter(None, (reading.ended, damage)))
        return Ended("; ".join(reasons) or "it ended", damage, remedy)


class _Seconds:
    """Turns frames in shown order into what is shown at each second. `next` is the first second not yet given."""

    def __init__(self, request: Request, reading: Reading, tick: Fraction):
        self.path, self.next = Path(request.source.shown), 0
        self._request, self._reading, self._tick = request, reading, tick
        self._held: Shown | None = None
        self._first = self._time = self._end = self._number = self._late = 0
        self._pts: int | None = None

    @property
    def any(self) -> bool:
        """True if there was a frame."""
        return self._held is not None

    def add(self, shown: Shown) -> Iterator[Picture | Notice]:
        """Yield what is known as soon as this frame is. Raise MediaError if its time is impossible."""
        if self._held is None:
            self._first = self._time = shown.time
        self._check(shown)
        step = float((shown.time - self._time) * self._tick)
        if step > limits().video_hours * 3600:
            reason = f"its clock jumps by {step / 3600:,.0f} hours after {self.next} s"
            raise MediaError(self.path, reason, raise_limit("video_hours"))
        if step > LARGEST_STEP / SECOND:
            yield Notice(f"no frame for {step:.0f} s after {self.next} s. The last one is shown meanwhile")
        self._time = max(shown.time, self._time)
        yield from self._until(self._time)
        self._held, self._end = shown, self._time + shown.length

    def rest(self) -> Iterator[Picture]:
        """Yield what the last frame shows."""
        return self._until(self._end)

    def _until(self, time_in_ticks: int) -> Iterator[Picture]:
        stop = ceil((time_in_ticks - self._first) * self._tick)
        if self._held is None or stop <= self.next:
            return
        picture = clip_view(self._held.view.picture(self._held.frame), self._request.image_size)
        second, self.next = self.next, stop
        due = time.monotonic() - self._reading.lag(stop - 1)
        yield Picture(second, stop - second, np.ascontiguousarray(picture.transpose(2, 0, 1)), due)

    def _check(self, shown: Shown) -> None:
        """Raise MediaError where `in_order` refuses a file: at a clock that goes back, and at many late frames."""
        pts = shown.frame.pts
        self._number += 1
        self._late += pts is not None and self._pts is not None and pts < self._pts
        self._pts = self._pts if pts is None else pts
        back = float((self._time - shown.time) * self._tick)
        if back > SMALLEST_RETURN / SECOND:
            reason = f"its clock goes back by {back:.1f} s after {self.next} s"
            raise MediaError(self.path, reason, "Start it again")
        if self._late > MOST_LATE * max(self._number, FEW):
            reason = f"{self._late} of its first {self._number} frames have times before the frame ahead of them"
            raise MediaError(self.path, reason)

"""When each frame is shown: join the clocks of a file, and choose between a frame's two times, as ffmpeg does.

A packet may have a presentation time (pts) and a decoding time (dts), and a decoder hands both to the frame. Some
containers state only one of them, some writers state wrong ones, and the clocks of a stream may restart.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor
from pathlib import Path

import av
import numpy as np
from av.packet import Packet

from ma2mba.limits import limits, raise_limit
from ma2mba.video.errors import MediaError

UNKNOWN = -(1 << 63)
"""Stands for a time that a file does not state; FFmpeg uses the same number."""
SECOND = av.time_base
"""Ticks of a second in FFmpeg's own time base."""
MOST_LATE = Fraction(1, 20)
"""Largest share of frames whose pts is before the pts of the frame that is shown ahead of them."""
LARGEST_STEP = 10 * SECOND
"""A larger step between two packets is a new clock. ffmpeg's -dts_delta_threshold has this default."""
LATEST = 1 << 40
"""Largest accepted time in seconds, 35,000 years: FFmpeg counts microseconds in 64 bits."""
SMALLEST_RETURN = SECOND // 10
"""A step back by more than this is a new clock, as in ffmpeg."""


class Span:
    """The seconds between the first and the last of some times in ticks, which limits() bounds."""

    def __init__(self, path: Path, tick: Fraction):
        self.path, self.tick, self.most = path, tick, limits().video_hours * 3600
        self._most_ticks, self._latest_ticks = floor(Fraction(self.most) / tick), floor(LATEST / tick)
        self.first = self.last = 0
        self.empty = True

    @staticmethod
    def of(path: Path, tick: Fraction, times: Sequence[int], last: int) -> float:
        """Return the seconds from the first of these frames to the end of the last, which is shown for `last` ticks."""
        span = Span(path, tick)
        span.add(times[0])
        span.add(times[-1] + last)
        return float((span.last - span.first) * tick)

    def add(self, time: int) -> None:
        """Add a time. Raise MediaError if the times span more hours than limits() allows."""
        if self.empty or time < self.first or time > self.last:
            self.first, self.last = (time, time) if self.empty else (min(time, self.first), max(time, self.last))
            self.empty = False
            if self.last - self.first > self._most_ticks or max(-self.first, self.last) > self._latest_ticks:
                self._refuse()

    def _refuse(self) -> None:
        seconds = float((self.last - self.first) * self.tick)
        if seconds > self.most:
            hours = f"its frames span {seconds / 3600:.0f} hours, more than {self.most / 3600:g}"
            raise MediaError(self.path, hours, raise_limit("video_hours"))
        latest = float(max(abs(self.first), abs(self.last)) * self.tick)
        if latest > LATEST:
            raise MediaError(self.path, f"its clock shows {latest:.0e} s")


@dataclass
class Clock:
    """Joins the clocks of one stream: a packet after a restart continues where the packet before it ended.

    `joins`: the container allows restarts (MPEG-TS, MPEG-PS, FLV, Ogg); otherwise a step is a long frame. `tick`:
    seconds of one tick of the packets. `rate`: frames per second, used if packets state no duration; 0 if unknown.
    `restarts`: number of restarts so far. Source: ts_discontinuity_detect in ffmpeg's fftools/ffmpeg_demux.c.
    """

    joins: bool
    tick: Fraction
    rate: Fraction
    restarts: int = 0
    _last: int | None = field(default=None, init=False)
    _next: int = field(default=0, init=False)
    _offset: int = field(default=0, init=False)

    def join(self, packet: Packet) -> None:
        """Change the packet's times to the joined clock."""
        if not self.joins or not packet.size:
            return
        self._shift(packet, self._offset)
        now = self._next if packet.dts is None else round(packet.dts * self.tick * SECOND)
        if self._last is not None and packet.dts is not None:
            delta = now - self._next
            if abs(delta) > LARGEST_STEP or now + SMALLEST_RETURN < self._last:
                self.restarts += 1
                self._offset -= delta
                self._shift(packet, -delta)
                now = self._next
        self._last = now
        length = packet.duration * self.tick * SECOND if packet.duration else self.rate and SECOND / self.rate
        self._next = now + round(length)

    def _shift(self, packet: Packet, by: int) -> None:
        if by:
            ticks = round(by / (SECOND * self.tick))
            packet.dts = None if packet.dts is None else packet.dts + ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks


@dataclass
class BestEffort:
    """Chooses each frame's time from its pts and its dts: the one that has gone backwards less often so far.

    `period`: ticks of each frame of a file without any times, such as raw H.264; None for files with times. `length`:
    how long the last frame is shown, in ticks. Source: guess_correct_pts in ffmpeg's libavcodec/decode.c and
    video_duration_estimate in fftools/ffmpeg_dec.c.
    """

    period: int | None
    length: int
    last: int | None = field(default=None, init=False)
    _last_pts: int | None = field(default=None, init=False)
    _last_dts: int | None = field(default=None, init=False)
    _faulty_pts: int = field(default=0, init=False)
    _faulty_dts: int = field(default=0, init=False)

    def time(self, pts: int | None, dts: int | None, duration: int) -> int:
        """Return the time of the next frame in shown order. A frame without a time follows the frame before it."""
        if dts is not None:
            self._faulty_dts += self._last_dts is not None and dts <= self._last_dts
            self._last_dts = dts
        elif pts is not None:
            self._last_dts = pts
        if pts is not None:
            self._faulty_pts += self._last_pts is not None and pts <= self._last_pts
            self._last_pts = pts
        elif dts is not None:
            self._last_pts = dts
        chosen = pts if pts is not None and (self._faulty_pts <= self._faulty_dts or dts is None) else dts
        if chosen is None:
            chosen = 0 if self.last is None else self.last + self.length
        step = -1 if self.last is None else chosen - self.last
        self.length = self.period or lasting(duration, step) or self.length
        self.last = chosen
        return chosen


def lasting(duration: int, step: int) -> int:
    """Return how many ticks a frame is shown that comes `step` ticks after the frame before it; 0 if it is unknown.

    FFmpeg states a duration of one tick for containers that state none, such as AVI.
    """
    invented = duration == 1 and step > 2
    return duration if duration > 0 and not invented else max(step, 0)


def in_order(path: Path, times: array, pts: array, tick: Fraction) -> list[int]:
    """Return the times of frames in shown order, where none is before the time of the frame ahead of it.

    `times`, `pts`: one for each frame in ticks; a pts may be UNKNOWN. A player shows a frame whose time has passed at
    once. Raise MediaError if many frames (by `pts`) or one frame (by more than SMALLEST_RETURN) come late: then the
    file does not say when they are shown.
    """
    shown, stated = np.array(times), np.array(pts)
    stated = stated[stated != UNKNOWN]
    late = int((stated[1:] < stated[:-1]).sum())
    if late > MOST_LATE * len(times):
        reason = f"{late} of its {len(times)} frames have times before the frame ahead of them"
        reason += ": it states when frames are decoded, not when they are shown"
        raise MediaError(path, reason, "Use the original file, or encode it again")
    ordered = np.maximum.accumulate(shown)
    back = (ordered - shown) * float(tick)
    if back.max() > SMALLEST_RETURN / SECOND:
        number = int(np.argmax(back > SMALLEST_RETURN / SECOND))
        at = float((int(ordered[number]) - times[0]) * tick)
        reason = f"its clock goes back by {back[number]:.1f} s after frame {number}, at {at:.1f} s"
        raise MediaError(path, reason, "Split it there, or encode it again")
    return ordered.tolist()

"""Decode a video's frames in the order in which they are shown, each with its time, and notice damage."""

import re
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from ma2mba.memory import held_bytes
from ma2mba.video.errors import reading_memory
from ma2mba.video.probe import clock_of, frame_ticks
from ma2mba.video.pyav import (
    begins_anywhere,
    decoder_memory,
    error_text,
    open_video,
    raise_if_out_of_memory,
    raise_if_too_large,
    states_times,
    time_base,
)
from ma2mba.video.times import BestEffort, Clock
from ma2mba.video.view import View, view_of

IDR = 5
"""The type of an H.264 unit before which no frame is referred to."""


class Damage(Exception):
    """The frames from here on cannot be trusted; the message says why and where."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A frame, its time and its length in ticks, and how its picture is viewed."""

    frame: av.VideoFrame
    time: int
    length: int
    view: View


def shown_frames(path: Path, beat: Callable[[], None], wanted: Set[int] | None = None) -> Iterator[Shown]:
    """Yield the frames in shown order. With `wanted`, skip the frames of other pts that no other frame needs.

    A stream may begin within a group of pictures: what cannot be decoded before its first key frame is skipped, as a
    player does. Raise Damage at the first frame that is damaged.
    """
    with open_video(path) as (container, stream):
        yield from frames_of(path, container, stream, clock_of(container, stream), beat, wanted)


def frames_of(
    path: Path,
    container: InputContainer,
    stream: VideoStream,
    clock: Clock,
    beat: Callable[[], None],
    wanted: Set[int] | None = None,
) -> Iterator[Shown]:
    """Yield what `shown_frames` yields of an open video, whose clocks `clock` joins."""
    context, view = stream.codec_context, view_of(path, container, stream)
    times = BestEffort(
        None if states_times(container) else frame_ticks(container, stream), frame_ticks(container, stream)
    )
    reading = _Reading(time_base(stream), times, view, begins_anywhere(container))
    packets, room, held = container.demux(stream), decoder_memory(stream), held_bytes()
    while True:
        packet = None
        try:
            with reading_memory(path, room, held):
                packet = next(packets, None)
                if packet is None:
                    break
                beat()
                clock.join(packet)
                reading.see(packet)
                if wanted is not None:
                    context.skip_frame = "DEFAULT" if packet.size == 0 or packet.pts in wanted else "NONREF"
                frames = packet.decode()
        except (av.FFmpegError, EOFError) as error:
            raise_if_out_of_memory(error)
            raise_if_too_large(path, packet, error)
            reading.failed(packet, error_text(error))
            continue
        for frame in frames:
            yield reading.shown(frame)
            if wanted is None or frame.pts in wanted:
                held = held_bytes()
    if not reading.number:
        raise Damage(f"no frame could be decoded{reading.failure}")


@dataclass
class _Reading:
    """What is known while a file is decoded.

    `cut_anywhere`: files of this format may begin with any packet. `number`: frames shown so far; `first`: the time of
    the first. `key`: the first key packet, and its pts. `within`: the file begins within a group of pictures. `due`:
    the first pts that a player shows. `failure`: an error before the first frame.
    """

    tick: Fraction
    times: BestEffort
    view: View
    cut_anywhere: bool
    number: int = 0
    first: int = 0
    key: tuple[int | None] | None = None
    within: bool = False
    due: int | None = None
    failure: str = ""

    def see(self, packet: Packet) -> None:
        """Look at a packet before it is decoded."""
        if self.number or not packet.size:
            return
        if not self.key:
            self.within |= not packet.is_keyframe or not starts_afresh(packet)
            self.key = (packet.pts,) if packet.is_keyframe else None
        elif self.leads(packet):
            self.within = True
        if self.key and not packet.is_discard and packet.pts is not None and packet.pts >= (self.key[0] or 0):
            self.due = packet.pts if self.due is None else min(self.due, packet.pts)

    def leads(self, packet: Packet) -> bool:
        """Return True if the first key frame is decoded before this packet's frame and shown after it."""
        key = self.key[0] if self.key else None
        return key is not None and (packet.pts < key if packet.pts is not None else not self.number)

    def failed(self, packet: Packet | None, reason: str) -> None:
        """Raise Damage, unless the error is normal in a stream that begins within a group of pictures."""
        self.failure = f" ({reason})"
        if packet is not None and (self.leads(packet) or (not self.key and self.cut_anywhere)):
            return
        if packet is not None and self.key and not self.number and self.within and not packet.is_keyframe:
            return
        last = self.first if self.times.last is None else self.times.last
        at = f"frame {self.number}, at {float((last - self.first) * self.tick):.1f} s" if self.number else "its start"
        raise Damage(f"damaged after {at}{self.failure}")

    def shown(self, frame: av.VideoFrame) -> Shown:
        """Return the next frame with its time. Raise Damage if it, or what comes before it, is damaged."""
        self.number += 1
        if frame.is_corrupt:
            raise Damage(f"damaged at frame {self.number}")
        time = self.times.time(frame.pts, frame.dts, frame.duration or 0)
        if self.number > 1:
            return Shown(frame, time, self.times.length, self.view)
        self.first = time
        if not self.key and not frame.key_frame:
            raise Damage("it begins within a group of pictures, and its first frames lack what they refer to")
        if self.failure and self.due is not None and frame.pts != self.due:
            raise Damage(f"damaged before its first readable frame{self.failure}")
        return Shown(frame, time, self.times.length, self.view)


def starts_afresh(packet: Packet) -> bool:
    """Return True unless a key packet is an H.264 picture that is not IDR: later frames may refer to earlier ones."""
    if packet.stream.codec_context.name != "h264":
        return True
    data = bytes(packet)
    if data.startswith((b"\0\0\1", b"\0\0\0\1")):
        kinds = [unit[0] & 31 for unit in re.split(b"\0\0\1", data)[1:] if unit]
    else:
        kinds, at = [], 0
        while at + 4 < len(data):
            kinds.append(data[at + 4] & 31)
            at += 4 + int.from_bytes(data[at : at + 4])
    return IDR in kinds

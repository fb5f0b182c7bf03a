"""Read a video file without decoding it: when each frame is shown, and whether the file is damaged.

`probe` finds unreadable packets and truncated files. It returns the damage in `Probe.damage`, and
`decode.decode_video` rejects the video. A file that is not a readable video, or whose times are impossible, raises
MediaError here. Whether the packets' times can be trusted is decided here too; `decode.py` decodes the times of all
other files.
"""

import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from ma2mba.video.entries import entry_check
from ma2mba.video.errors import MediaError, reading_memory
from ma2mba.video.pyav import error_text, frame_rate, open_video, raise_if_out_of_memory, restarts_clocks, time_base
from ma2mba.video.stretches import KEY, Packets
from ma2mba.video.times import UNKNOWN, Clock, Span, lasting

TRUNCATION_TOLERANCE = 1.5
"""Seconds that an intact file may end before the duration in its header (audio padding, rounded headers)."""
DELAY = 3
"""Frames that a decoder usually holds back at most, until it knows which is shown next."""


@dataclass(frozen=True)
class Probe:
    """The times of a video's frames, and its damage.

    `pts`: presentation times of all shown frames, increasing, in units of `time_base` seconds. `duration`: seconds
    from the first frame to the end of the last. `by_packet`: the packets state these times, and they can be trusted.
    `damage`: how the file is damaged; "" for an intact file. `packets`: all packets, if their times can be trusted.
    """

    pts: list[int]
    time_base: Fraction
    duration: float
    by_packet: bool
    damage: str
    packets: Packets | None = field(default=None, compare=False, repr=False)

    def shown_at(self, t: Fraction) -> int:
        """Return the number of the last frame whose time is not after second `t`."""
        return bisect_right(self.pts, self.pts[0] + floor(t / self.time_base)) - 1


def probe(path: Path, beat: Callable[[], None] = lambda: None) -> Probe:
    """Read every packet of a video and return what the packets say. `beat` is called at each packet.

    If the packets' times cannot be trusted, `pts` is empty: decode.decoded_times finds them. Raise MediaError if the
    file is not a readable video, or if its times are impossible.
    """
    with reading_memory(path), open_video(path) as (container, stream):
        clock, stamps = clock_of(container, stream), _Stamps(Span(path, time_base(stream)), entry_check(stream))
        end, damage = _read_packets(container, stream, clock, stamps, beat)
        damage = damage or missing_bytes(path, container)
        if not clock.restarts:
            damage = damage or _early_end(container, stream, end + stamps.delay(), stamps.end())
        reorders, period = bool(stream.codec_context.has_b_frames), frame_ticks(container, stream)
    if not any(flags & SHOWN for flags in stamps.flags):
        raise MediaError(path, damage or "it holds no frames")
    pts, last = stamps.trusted(reorders) if not clock.restarts else ([], 0)
    if not pts:
        return Probe([], clock.tick, 0.0, False, damage)
    last = lasting(last, pts[-1] - pts[-2] if len(pts) > 1 else 0) or period
    return Probe(pts, clock.tick, Span.of(path, clock.tick, pts, last), True, damage, stamps.packets())


def clock_of(container: InputContainer, stream: VideoStream) -> Clock:
    """Return the clock that joins the times of a stream."""
    return Clock(restarts_clocks(container), time_base(stream), frame_rate(container, stream))


def frame_ticks(container: InputContainer, stream: VideoStream) -> int:
    """Return the length of one frame in ticks, from the average frame rate; one tick if the file states no rate."""
    rate = frame_rate(container, stream)
    return max(1, round(1 / (rate * time_base(stream)))) if rate else 1


SHOWN = 2
"""Flag of a packet: the container does not hide its frame."""


class _Stamps:
    """What the packets of a stream say, in the order of decoding: 29 bytes each, since a file of a day holds millions.

    Times are in ticks, or UNKNOWN. `lengths` are the durations of the frames.
    """

    def __init__(self, span: Span, entry: Callable[[Packet], int]):
        self.span, self._entry = span, entry
        self.pts, self.dts, self.lengths, self.flags = array("q"), array("q"), array("q"), array("b")
        self.sizes = array("i")

    def add(self, packet: Packet) -> None:
        """Add a packet. Raise MediaError as soon as the frames span more hours than limits() allows."""
        self.pts.append(UNKNOWN if packet.pts is None else packet.pts)
        self.dts.append(UNKNOWN if packet.dts is None else packet.dts)
        self.lengths.append(packet.duration or 0)
        key = KEY | self._entry(packet) if packet.is_keyframe else 0
        self.flags.append(key | SHOWN * (not packet.is_discard))
        self.sizes.append(packet.size)
        if packet.pts is not None and not packet.is_discard:
            self.span.add(packet.pts)

    def packets(self) -> Packets:
        return Packets(np.array(self.pts), np.array(self.sizes), np.array(self.flags))

    def delay(self) -> float:
        """Return how many seconds after the packets' times the last frame may be shown, if packets lack their pts."""
        dts = np.array(self.dts)[np.array(self.dts) != UNKNOWN]
        if UNKNOWN not in self.pts or dts.size < 2:
            return 0.0
        return float(DELAY * int(np.diff(dts).max()) * self.span.tick)

    def end(self) -> float:
        """Return the latest time of a packet in seconds."""
        return float(max(max(self.pts, default=0), max(self.dts, default=0), 0) * self.span.tick)

    def trusted(self, reorders: bool) -> tuple[list[int], int]:
        """Return the times of all shown frames in order, and how long the last is shown; ([], 0) if they are uncertain.

        Every packet needs its own pts, and decoding times must not go back. If the decoder reorders frames, the pts
        must show it: AVI and files made from AVI number the packets in the order of decoding. Otherwise the pts must
        increase. What a player cannot show is left out: the frames before the first key frame, in either order.
        """
        pts, dts, flags = (np.array(values) for values in (self.pts, self.dts, self.flags))
        stated = dts[dts != UNKNOWN]
        increasing = bool((pts[1:] > pts[:-1]).all())
        if (pts == UNKNOWN).any() or (stated[1:] < stated[:-1]).any() or increasing == reorders:
            return [], 0
        order = np.argsort(pts, kind="stable")
        keys = np.flatnonzero(flags & KEY)
        if (np.diff(pts[order]) == 0).any() or not keys.size:
            return [], 0
        shown = order[(order >= keys[0]) & (pts[order] >= pts[keys[0]]) & (flags[order] & SHOWN > 0)]
        return (pts[shown].tolist(), self.lengths[shown[-1]]) if shown.size else ([], 0)


def _read_packets(
    container: InputContainer, stream: VideoStream, clock: Clock, stamps: _Stamps, beat: Callable[[], None]
) -> tuple[float, str]:
    """Read all packets of all streams, join the times of this stream, and add them to `stamps`.

    Return the end of the last packet in seconds, and the damage that stopped the reading ("" if none).
    """
    ends, ticks, damage = dict[int, int](), dict[int, Fraction](), ""  # for each stream: fractions are slow
    own = stream.index
    try:
        for packet in container.demux():
            beat()
            if packet.size == 0:
                continue
            index, stamp = packet.stream.index, packet.pts if packet.pts is not None else packet.dts
            if index not in ticks:
                ticks[index] = packet.time_base or Fraction(0)
            if stamp is not None:
                ends[index] = max(ends.get(index, 0), stamp + (packet.duration or 0))
            if index == own:
                clock.join(packet)
                stamps.add(packet)
    except IndexError:
        pass  # after the last packet, PyAV looks for a stream that appeared while it read the file
    except av.FFmpegError as error:
        raise_if_out_of_memory(error)
        damage = f"reading stopped after {len(stamps.pts)} frames ({error_text(error)})"
    return max((float(end * ticks[index]) for index, end in ends.items()), default=0.0), damage


def missing_bytes(path: Path, container: InputContainer) -> str:
    """Return how many bytes a truncated mp4 or AVI file lacks; "" for an intact file and for other containers."""
    try:
        return missing_tail(path) if container.format.name.startswith(("mov,", "avi")) else ""
    except OSError as error:
        raise MediaError(path, f"cannot be read to its end ({error.strerror})") from error


def _early_end(container: InputContainer, stream: VideoStream, end: float, own_end: float) -> str:
    """Return by how much the last packet ends before the duration in the header; "" within TRUNCATION_TOLERANCE.

    `own_end`: the end of the video's own packets. A video that reaches its own length is whole, whatever the header
    says of the sound: its length can be wrong, as that of Vorbis in AVI.
    """
    if not container.duration:
        return ""
    if stream.duration:
        own_length = float(stream.duration * time_base(stream))
        own_start = float((stream.start_time or 0) * time_base(stream))
        if own_end - own_start >= own_length - TRUNCATION_TOLERANCE:
            return ""
    declared, start = container.duration / av.time_base, min((container.start_time or 0) / av.time_base, 0.0)
    end -= start
    if end >= declared - TRUNCATION_TOLERANCE:
        return ""
    return f"truncated or damaged: it ends at {end:.1f} s of {declared:.1f} s"


def missing_tail(path: Path) -> str:
    """Return how many bytes the last top-level box of an mp4 or AVI file lacks; "" if it is complete.

    For a file that was cut within its last box, this can be the only trace.
    """
    at, size = 0, path.stat().st_size
    with open(path, "rb") as file:
        riff = file.read(4) == b"RIFF"
        while at + 16 <= size:
            file.seek(at)
            head = file.read(16)
            kind = head[:4] if riff else head[4:8]
            length = _box_length(head, riff)
            if not kind.isalnum() or not length:
                return ""
            at += length
    return f"truncated: {at - size} bytes are missing at its end" if at > size else ""


def _box_length(head: bytes, riff: bool) -> int:
    """Return the length in bytes of the box whose first 16 bytes are `head`; 0 if the box states no valid length."""
    if riff:
        (payload,) = struct.unpack("<I", head[4:8])
        return 8 + payload + payload % 2
    length, long = struct.unpack(">I4xQ", head)
    length = long if length == 1 else length
    return length if length >= 8 else 0

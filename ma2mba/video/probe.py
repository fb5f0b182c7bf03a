"""Read a video file without decoding it: when each frame is shown, and whether the file is damaged.

`probe` finds unreadable packets and truncated files. It returns the damage in `Probe.damage`, and
`decode.decode_video` rejects the video. A file that is not a readable video, or whose times are impossible, raises
MediaError here.
"""

import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from ma2mba.limits import limits, raise_limit
from ma2mba.memory import held_bytes
from ma2mba.video.errors import MediaError, reading_memory
from ma2mba.video.pyav import decoder_memory, error_text, open_video, raise_if_out_of_memory, time_base

TRUNCATION_TOLERANCE = 1.5
"""Seconds that an intact file may end before the duration in its header (audio padding, rounded headers)."""


@dataclass(frozen=True)
class Probe:
    """The times of a video's frames, and its damage.

    `pts`: presentation times of all shown frames, increasing, in units of `time_base` seconds. `duration`: seconds
    from the first frame to the end of the last. `by_packet`: the container states these times; False if they had to
    be decoded. `damage`: how the file is damaged; "" for an intact file.
    """

    pts: list[int]
    time_base: Fraction
    duration: float
    by_packet: bool
    damage: str


def probe(path: Path, beat: Callable[[], None] = lambda: None) -> Probe:
    """Read every packet of a video and return its frame times and its damage. `beat` is called at each packet.

    If the packets have no presentation times, decode every frame instead. Raise MediaError if the file is not a
    readable video, or if its times are impossible.
    """
    with reading_memory(path), open_video(path) as (container, stream):
        tick, period = time_base(stream), _period(stream)
        times = _Times(path, tick)
        end, unstamped, damage = _read_packets(container, stream, times, beat)
        damage = damage or _missing_bytes(path, container) or _early_end(container, end)
    if unstamped:
        times = _Times(path, tick)
        for span in _decoded_spans(path, beat):
            times.add(*span)
    if not times.pts:
        raise MediaError(path, damage or "it holds no frames with times")
    pts = np.sort(np.frombuffer(times.pts, np.int64)).tolist()
    last = times.last[1] or (pts[-1] - pts[-2] if len(pts) > 1 else period)
    return Probe(pts, tick, times.span(last), not unstamped, damage)


class _Times:
    """The times of frames in ticks, as they are read: 8 bytes each, since a file of a day holds millions.

    `last`: pts and duration of the frame that is shown last.
    """

    def __init__(self, path: Path, tick: Fraction):
        self.path, self.tick, self.most = path, tick, limits().video_hours * 3600
        self.pts, self.first, self.last = array("q"), 0, (0, 0)

    def add(self, pts: int, duration: int) -> None:
        """Add a frame. Raise MediaError as soon as the frames span more hours than limits() allows."""
        if not self.pts:
            self.first, self.last = pts, (pts, duration)
        self.pts.append(pts)
        if pts < self.first or (pts, duration) > self.last:
            self.first, self.last = min(pts, self.first), max((pts, duration), self.last)
            self.span(0)

    def span(self, last: int) -> float:
        """Return the seconds from the first frame to the end of the last one, which is shown for `last` ticks.

        Raise MediaError if this is more than limits() allows.
        """
        seconds = float((self.last[0] + last - self.first) * self.tick)
        if seconds > self.most:
            hours = f"its frames span {seconds / 3600:.0f} hours, more than {self.most / 3600:g}"
            raise MediaError(self.path, hours, raise_limit("video_hours"))
        return seconds


def _read_packets(
    container: InputContainer, stream: VideoStream, times: _Times, beat: Callable[[], None]
) -> tuple[float, bool, str]:
    """Read all packets of all streams, and add each shown frame to `times`.

    Return the end of the last packet in seconds, whether a frame has no pts, and the damage that stopped the reading
    ("" if none).
    """
    end, unstamped = 0.0, False
    try:
        for packet in container.demux():
            beat()
            if packet.size == 0:
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None and packet.time_base is not None:
                end = max(end, float((stamp + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index == stream.index and not packet.is_discard:
                if packet.pts is None:
                    unstamped = True
                else:
                    times.add(packet.pts, packet.duration or 0)
    except av.FFmpegError as error:
        raise_if_out_of_memory(error)
        return end, unstamped, f"reading stopped after {len(times.pts)} frames ({error_text(error)})"
    return end, unstamped, ""


def _missing_bytes(path: Path, container: InputContainer) -> str:
    """Return how many bytes a truncated mp4 or AVI file lacks; "" for an intact file and for other containers."""
    try:
        return missing_tail(path) if container.format.name.startswith(("mov,", "avi")) else ""
    except OSError as error:
        raise MediaError(path, f"cannot be read to its end ({error.strerror})") from error


def _early_end(container: InputContainer, end: float) -> str:
    """Return by how much the last packet ends before the duration in the header; "" within TRUNCATION_TOLERANCE."""
    if not container.duration:
        return ""
    declared, start = container.duration / av.time_base, min((container.start_time or 0) / av.time_base, 0.0)
    end -= start
    if end >= declared - TRUNCATION_TOLERANCE:
        return ""
    return f"truncated or damaged: it ends at {end:.1f} s of {declared:.1f} s"


def _period(stream: VideoStream) -> int:
    """Return the length of one frame in ticks, from the average frame rate; one tick if the file states no rate."""
    if not stream.average_rate:
        return 1
    return max(1, round(1 / (stream.average_rate * time_base(stream))))


def _decoded_spans(path: Path, beat: Callable[[], None]) -> Iterator[tuple[int, int]]:
    """Decode all frames and yield (pts, duration) of each, for containers whose packets have only decoding times."""
    with open_video(path) as (container, stream):
        frames, room, held = container.decode(stream), decoder_memory(stream), held_bytes()
        try:
            while True:
                with reading_memory(path, room, held):
                    frame = next(frames, None)
                if frame is None:
                    return
                beat()
                stamp = frame.pts if frame.pts is not None else frame.dts
                if stamp is not None:
                    yield stamp, frame.duration or 0
        except av.FFmpegError as error:  # the frames before the damage have their times
            raise_if_out_of_memory(error)


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

"""Read a video file without decoding it: when each frame is shown, and whether the file is damaged.

`probe` finds unreadable packets and truncated files. It returns the damage in `Probe.damage`, and
`decode.decode_video` rejects the video. A file that is not a readable video, or whose times are impossible, raises
MediaError here.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from ma2mba.video.errors import MediaError
from ma2mba.video.pyav import error_text, open_video, raise_if_out_of_memory, time_base

TRUNCATION_TOLERANCE = 1.5
"""Seconds that an intact file may end before the duration in its header (audio padding, rounded headers)."""
LONGEST = 48 * 3600
"""Longest accepted video in seconds. Without it, one wrong timestamp would request millions of frames."""


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
    with open_video(path) as (container, stream):
        spans, ends, unstamped, damage = _read_packets(container, stream, beat)
        damage = damage or _missing_bytes(path, container) or _early_end(container, ends)
        tick, period = time_base(stream), _period(stream)
    if unstamped:
        spans = _decoded_spans(path, beat)
    if not spans:
        raise MediaError(path, damage or "it holds no frames with times")
    spans.sort()
    pts = [start for start, _ in spans]
    last = spans[-1][1] or (pts[-1] - pts[-2] if len(pts) > 1 else period)
    duration = float((pts[-1] + last - pts[0]) * tick)
    if duration > LONGEST:
        raise MediaError(
            path, f"its frames span {duration / 3600:.0f} hours; over {LONGEST // 3600} is taken as damage"
        )
    return Probe(pts, tick, duration, not unstamped, damage)


def _read_packets(
    container: InputContainer, stream: VideoStream, beat: Callable[[], None]
) -> tuple[list[tuple[int, int]], list[float], bool, str]:
    """Read all packets of all streams.

    Return (pts, duration) of each shown frame, the end of every packet in seconds, whether a frame has no pts, and
    the damage that stopped the reading ("" if none).
    """
    spans: list[tuple[int, int]] = []
    ends, unstamped = [0.0], False
    try:
        for packet in container.demux():
            beat()
            if packet.size == 0:
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None and packet.time_base is not None:
                ends.append(float((stamp + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index == stream.index and not packet.is_discard:
                if packet.pts is None:
                    unstamped = True
                else:
                    spans.append((packet.pts, packet.duration or 0))
    except av.FFmpegError as error:
        raise_if_out_of_memory(error)
        return spans, ends, unstamped, f"reading stopped after {len(spans)} frames ({error_text(error)})"
    return spans, ends, unstamped, ""


def _missing_bytes(path: Path, container: InputContainer) -> str:
    """Return how many bytes a truncated mp4 or AVI file lacks; "" for an intact file and for other containers."""
    try:
        return missing_tail(path) if container.format.name.startswith(("mov,", "avi")) else ""
    except OSError as error:
        raise MediaError(path, f"cannot be read to its end ({error.strerror})") from error


def _early_end(container: InputContainer, ends: list[float]) -> str:
    """Return by how much the last packet ends before the duration in the header; "" within TRUNCATION_TOLERANCE."""
    if not container.duration:
        return ""
    declared, start = container.duration / av.time_base, min((container.start_time or 0) / av.time_base, 0.0)
    end = max(ends) - start
    if end >= declared - TRUNCATION_TOLERANCE:
        return ""
    return f"truncated or damaged: it ends at {end:.1f} s of {declared:.1f} s"


def _period(stream: VideoStream) -> int:
    """Return the length of one frame in ticks, from the average frame rate; one tick if the file states no rate."""
    if not stream.average_rate:
        return 1
    return max(1, round(1 / (stream.average_rate * time_base(stream))))


def _decoded_spans(path: Path, beat: Callable[[], None]) -> list[tuple[int, int]]:
    """Decode all frames and return (pts, duration) of each, for containers whose packets have only decoding times."""
    spans = []
    with open_video(path) as (container, stream):
        try:
            for frame in container.decode(stream):
                beat()
                stamp = frame.pts if frame.pts is not None else frame.dts
                if stamp is not None:
                    spans.append((stamp, frame.duration or 0))
        except av.FFmpegError as error:  # the frames before the damage have their times
            raise_if_out_of_memory(error)
    return spans


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

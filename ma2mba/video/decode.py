"""Reject damaged videos, and decode the frames that a viewer sees every 1/fps seconds.

`decode_video` raises MediaError for a damaged video. The damage is found in three places: `probe` finds unreadable
packets and truncated files; `_decode_once` finds frames that cannot be decoded; `decord_reader` finds frames that
decord would get wrong.

At second k, a viewer sees the last frame with pts - start <= k, by the file's own timestamps. Two passes: `probe` reads
all timestamps without decoding; then the file is decoded, and the decoder skips frames that are neither sampled nor
needed as references.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Generic, Literal, TypeVar

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from ma2mba.memory import held_bytes
from ma2mba.video.decord_reader import decode_indices, load_decord
from ma2mba.video.errors import MediaError, reading_memory
from ma2mba.video.probe import Probe, probe
from ma2mba.video.pyav import (
    DECODER_VERSION,
    SINGLE_THREAD,
    decoder_memory,
    error_text,
    open_video,
    raise_if_out_of_memory,
    raise_if_too_large,
)

T = TypeVar("T")
DecoderName = Literal["pyav", "decord"]


@dataclass(frozen=True)
class Sample(Generic[T]):
    """The frame shown at second `t`.

    `pts`: since which second it is shown, counted from the first frame. `index`: its number among all frames of the
    file. `value`: what the caller's `use` returned for it.
    """

    t: float
    pts: float
    index: int
    value: T


@dataclass(frozen=True)
class Decoded(Generic[T]):
    """The sampled frames of a video.

    `total`: number of frames in the whole file. `duration`: length of the whole video in seconds. `damage`: why the
    frames after `samples` cannot be used; "" for an intact file.
    """

    samples: list[Sample[T]]
    total: int
    duration: float
    damage: str


def decoder_version(decoder: DecoderName) -> str:
    """Return the versions of the libraries that decide which frames are sampled, and their pixels.

    With decord, PyAV still reads the timestamps. Raise UserError if the decoder is not installed.
    """
    return f"{load_decord().__version__}, times by pyav {DECODER_VERSION}" if decoder == "decord" else DECODER_VERSION


def sample_times(duration: float, fps: float, start: float | None, stop: float | None) -> list[Fraction]:
    """Return start, start + 1/fps, ... below min(stop, duration), in seconds, exactly."""
    step = 1 / Fraction(fps).limit_denominator(1_000_000)
    first = Fraction(start or 0.0)
    end = Fraction(duration if stop is None else min(stop, duration))
    return [first + k * step for k in range(max(0, math.ceil((end - first) / step)))]


def decode_video(
    path: Path,
    use: Callable[[np.ndarray], T],
    *,
    fps: float = 1.0,
    count: int | None = None,
    start: float | None = None,
    stop: float | None = None,
    keep_damaged: bool = False,
    decoder: DecoderName = "pyav",
    beat: Callable[[], None] = lambda: None,
    expect: Callable[[int], None] = lambda _: None,
) -> Decoded[T]:
    """Decode the frames shown every 1/fps seconds of [start, stop), and pass each to `use` as RGB uint8 (H, W, 3).

    `count` keeps only that many of the times, evenly spaced. `use` sees a frame once, even if it is shown at several
    times. `beat` is called at every packet, `expect` before the first frame is decoded, with the number of frames.
    Raise MediaError if the file is not a readable video, if it is damaged, or if it has no frame in the range. With
    `keep_damaged`, return the frames before the damage instead.
    """
    facts = probe(path, beat)
    times = pick(sample_times(facts.duration, fps, start, stop), count)
    if not times:
        raise MediaError(path, f"lasts {facts.duration:.2f} s: no frame in the requested range")
    indices = [_shown_at(facts, t) for t in times]
    wanted = {facts.pts[i] for i in indices}
    expect(len(wanted))
    if decoder == "decord":
        used, damage = decode_indices(path, facts, indices, use, beat)
    else:
        used, damage = _decode_wanted(path, facts, wanted, use, beat)
    damage = facts.damage or damage
    if damage and not keep_damaged:
        raise MediaError(path, damage)
    samples = _before_damage(facts, times, indices, used)
    if not samples:
        raise MediaError(path, damage or "no frame could be decoded")
    return Decoded(samples, len(facts.pts), facts.duration, damage)


def pick(times: Sequence[T], count: int | None) -> list[T]:
    """Return `count` of the times, spaced as numpy.linspace does; return all if there are no more than `count`."""
    if count is None or count >= len(times):
        return list(times)
    return [times[i] for i in np.linspace(0, len(times) - 1, count).astype(int)]


def _shown_at(facts: Probe, t: Fraction) -> int:
    """Return the index of the last frame whose time is not after `t`."""
    return bisect_right(facts.pts, facts.pts[0] + math.floor(t / facts.time_base)) - 1


def _before_damage(
    facts: Probe, times: Sequence[Fraction], indices: Sequence[int], used: dict[int, T]
) -> list[Sample[T]]:
    """Return the samples up to the first frame whose pts is not in `used`."""
    samples = []
    for t, index in zip(times, indices, strict=True):
        pts = facts.pts[index]
        if pts not in used:
            break
        samples.append(Sample(float(t), float((pts - facts.pts[0]) * facts.time_base), index, used[pts]))
    return samples


def _decode_wanted(
    path: Path, facts: Probe, wanted: set[int], use: Callable[[np.ndarray], T], beat: Callable[[], None]
) -> tuple[dict[int, T], str]:
    """Return a map from each wanted pts to what `use` returned, and the damage if frames are missing ("" if none).

    A second pass decodes every frame if frames are missing after the pass that skips.
    """
    used: dict[int, T] = {}
    damage = "frames are missing"
    for skipping in (True, False) if facts.by_packet else (False,):
        damage = _decode_once(path, wanted, used, use, beat, skipping=skipping)
        if len(used) == len(wanted):
            return used, ""
    return used, damage


def _decode_once(
    path: Path,
    wanted: set[int],
    used: dict[int, T],
    use: Callable[[np.ndarray], T],
    beat: Callable[[], None],
    *,
    skipping: bool,
) -> str:
    """Decode the file once and add frames to `used` until all are there or damage is found. Return the damage."""
    with open_video(path) as (container, stream):
        context, shown, failure = stream.codec_context, 0, ""
        packets, reformatter = container.demux(stream), VideoReformatter()
        room, held = decoder_memory(stream), held_bytes()
        while True:
            packet = None
            try:
                with reading_memory(path, room, held):
                    packet = next(packets, None)
                    if packet is None:
                        return f"{len(wanted) - len(used)} of {len(wanted)} frames could not be decoded{failure}"
                    beat()
                    if skipping:
                        context.skip_frame = "DEFAULT" if packet.size == 0 or packet.pts in wanted else "NONREF"
                    frames = packet.decode()
            except (av.FFmpegError, EOFError) as error:
                raise_if_out_of_memory(error)
                raise_if_too_large(path, packet, error)
                if shown:
                    return f"damaged after frame {shown} ({error_text(error)})"
                failure = f" ({error_text(error)})"
                continue  # an error before the first frame is normal if the file starts within a group of pictures
            for frame in frames:
                shown += 1
                pts = frame.pts if frame.pts is not None else frame.dts
                if pts in wanted and pts not in used:
                    if frame.is_corrupt:
                        return f"damaged at frame {shown}"
                    used[pts] = use(to_rgb(path, frame, reformatter))
                    held = held_bytes()
            if len(used) == len(wanted):
                return ""


def to_rgb(path: Path, frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """Return a frame as RGB uint8 (H, W, 3), rotated as the file says. Reuse one `reformatter` for all frames.

    Raise MediaError naming `path` if the pixel format cannot be converted.
    """
    try:
        picture = reformatter.reformat(frame, format="rgb24", **SINGLE_THREAD).to_ndarray()
    except av.FFmpegError as error:
        raise_if_out_of_memory(error)
        raise MediaError(path, f"cannot be converted to RGB ({error_text(error)})") from error
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture

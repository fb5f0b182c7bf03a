"""The frames that a viewer sees at every 1/fps second, by the file's own timestamps.

At second k the frame shown is the last one with pts - start <= k. Two passes: read all timestamps without decoding,
choose frames, then decode skipping the frames that neither are chosen nor serve as references.
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

from ma2mba.video.decord_reader import decode_indices, load_decord
from ma2mba.video.errors import MediaError
from ma2mba.video.probe import DECODER_VERSION, Probe, open_video, probe, refuse_memory, words

T = TypeVar("T")
DecoderName = Literal["pyav", "decord"]


@dataclass(frozen=True)
class Sample(Generic[T]):
    """What was made of the frame shown at `t` s: shown since `pts` s (from the first frame), number `index`."""

    t: float
    pts: float
    index: int
    value: T


@dataclass(frozen=True)
class Decoded(Generic[T]):
    """`duration` (seconds) and `total` (frames) of the whole video; `problem`: how it is damaged after `samples`."""

    samples: list[Sample[T]]
    total: int
    duration: float
    problem: str


def decoder_version(decoder: DecoderName) -> str:
    """What decides the frames; PyAV reads the times of what decord decodes. Raises UserError when it is missing."""
    return f"{load_decord().__version__}, times by pyav {DECODER_VERSION}" if decoder == "decord" else DECODER_VERSION


def sample_times(duration: float, fps: float, start: float | None, stop: float | None) -> list[Fraction]:
    """start, start + 1/fps, ... below min(stop, duration), exact, in seconds."""
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
) -> Decoded[T]:
    """Decode the frames shown at every 1/fps s of [start, stop) and give each, RGB uint8 (H, W, 3), to `use`.

    `count` spreads that many over those times as linspace does. A frame shown at several times is used once. `beat` is
    called at every packet.
    Raises MediaError for media that cannot be read, is damaged (unless `keep_damaged`: then the frames before the
    damage) or has nothing in the range.
    """
    facts = probe(path, beat)
    times = pick(sample_times(facts.duration, fps, start, stop), count)
    if not times:
        raise MediaError(path, f"lasts {facts.duration:.2f} s: no frame in the asked range")
    indices = [_shown_at(facts, t) for t in times]
    if decoder == "decord":
        used, problem = decode_indices(path, facts, indices, use, beat)
    else:
        used, problem = _decode_wanted(path, facts, {facts.pts[i] for i in indices}, use, beat)
    problem = facts.problem or problem
    if problem and not keep_damaged:
        raise MediaError(path, problem)
    samples = []
    for t, index in zip(times, indices, strict=True):
        pts = facts.pts[index]
        if pts not in used:
            break
        samples.append(Sample(float(t), float((pts - facts.pts[0]) * facts.time_base), index, used[pts]))
    if not samples:
        raise MediaError(path, problem or "no frame could be decoded")
    return Decoded(samples, len(facts.pts), facts.duration, problem)


def pick(times: Sequence[T], count: int | None) -> list[T]:
    """`count` of the times, spread as numpy's linspace spreads them; all of them when there are no more than that."""
    if count is None or count >= len(times):
        return list(times)
    return [times[i] for i in np.linspace(0, len(times) - 1, count).astype(int)]


def _shown_at(facts: Probe, t: Fraction) -> int:
    """Index of the last frame whose time is not after `t`."""
    return bisect_right(facts.pts, facts.pts[0] + math.floor(t / facts.time_base)) - 1


def _decode_wanted(
    path: Path, facts: Probe, wanted: set[int], use: Callable[[np.ndarray], T], beat: Callable[[], None]
) -> tuple[dict[int, T], str]:
    """Map each wanted pts to what `use` made of its frame, and say what stopped that, if anything."""
    used: dict[int, T] = {}
    problem = "frames are missing"
    for skipping in (True, False) if facts.by_packet else (False,):
        problem = _decode_once(path, wanted, used, use, beat, skipping=skipping)
        if len(used) == len(wanted):
            return used, ""
    return used, problem


def _decode_once(
    path: Path,
    wanted: set[int],
    used: dict[int, T],
    use: Callable[[np.ndarray], T],
    beat: Callable[[], None],
    *,
    skipping: bool,
) -> str:
    """One pass over the file, adding to `used` until all is there, the file ends or is found damaged (the reason)."""
    with open_video(path) as (container, stream):
        context, shown, said = stream.codec_context, 0, ""
        packets, reformatter = container.demux(stream), VideoReformatter()
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return f"{len(wanted) - len(used)} of {len(wanted)} frames could not be decoded{said}"
                beat()
                if skipping:
                    context.skip_frame = "DEFAULT" if packet.size == 0 or packet.pts in wanted else "NONREF"
                frames = packet.decode()
            except (av.FFmpegError, EOFError) as error:
                refuse_memory(error)
                if shown:
                    return f"damaged after frame {shown} ({words(error)})"
                said = f" ({words(error)})"
                continue  # before the first frame: a stream that was cut within a group of pictures starts so
            for frame in frames:
                shown += 1
                pts = frame.pts if frame.pts is not None else frame.dts
                if pts in wanted and pts not in used:
                    if frame.is_corrupt:
                        return f"damaged at frame {shown}"
                    used[pts] = use(to_rgb(path, frame, reformatter))
            if len(used) == len(wanted):
                return ""


def to_rgb(path: Path, frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """RGB uint8 (H, W, 3), turned as the file says it is to be shown; one `reformatter` serves many frames.

    Raises MediaError naming `path` for a picture format that cannot be converted.
    """
    try:
        picture = reformatter.reformat(frame, format="rgb24").to_ndarray()
    except av.FFmpegError as error:
        refuse_memory(error)
        raise MediaError(path, f"cannot be shown in RGB ({words(error)})") from error
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture

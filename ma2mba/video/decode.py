"""Reject damaged videos, and decode the frames that a viewer sees every 1/fps seconds.

`decode_video` raises MediaError for a damaged video. The damage is found in three places: `probe` finds unreadable
packets and truncated files; `shown_frames` finds frames that cannot be decoded; `decord_reader` finds frames that
decord would get wrong.

At second k, a viewer sees the last frame with pts - start <= k. Two passes: `probe` reads the times that the packets
state; then the file is decoded, and the decoder skips frames that are neither sampled nor needed as references. If the
packets' times cannot be trusted, or if they contradict the frames, the first pass decodes every frame instead and takes
the frames' own times, in the order in which they are shown.
"""

import contextlib
import math
from array import array
from bisect import bisect_left
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np

from ma2mba.video.animation import decode_webp, is_animated_webp, webp_times
from ma2mba.video.decord_reader import decode_indices, load_decord
from ma2mba.video.errors import MediaError
from ma2mba.video.probe import Probe, probe
from ma2mba.video.pyav import DECODER_VERSION
from ma2mba.video.seek import Divided, Doubt, decode_sparse
from ma2mba.video.shown import Damage, shown_frames
from ma2mba.video.stretches import Stretches
from ma2mba.video.times import UNKNOWN, Span, in_order

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
    frames after `samples` cannot be used; "" for an intact file. `ignored`: what the file says of its pictures and is
    not applied; "" if nothing.
    """

    samples: list[Sample[T]]
    total: int
    duration: float
    damage: str
    ignored: str = ""


@dataclass(frozen=True)
class Plan:
    """What is decoded of a video; known before its first frame is decoded.

    Sample n is at second `times_N[n]` and shows picture `shown_N[n]`. A frame that is shown at several times is one
    picture. Pictures are decoded in order. `duration`: length of the whole video in seconds.
    """

    times_N: np.ndarray
    shown_N: np.ndarray
    duration: float

    @property
    def pictures(self) -> int:
        """The number of different pictures."""
        return int(self.shown_N[-1]) + 1

    def seconds(self, pictures: int) -> float:
        """Return the time of the last sample that the first `pictures` pictures show, 0 for no picture."""
        last = int(np.searchsorted(self.shown_N, pictures - 1, "right")) - 1
        return float(self.times_N[last]) if pictures else 0.0


class Untrusted(Exception):
    """The times of the packets contradict the frames."""


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
    seek: bool = False,
    divide: bool = False,
    decoder: DecoderName = "pyav",
    beat: Callable[[], None] = lambda: None,
    announce: Callable[[Plan], None] = lambda _: None,
) -> Decoded[T]:
    """Decode the frames shown every 1/fps seconds of [start, stop), and pass each to `use` as RGB uint8 (H, W, 3).

    `count` keeps only that many of the times, evenly spaced. `use` sees a frame once, even if it is shown at several
    times. `beat` is called at every packet, `announce` before `use` sees the first frame. If a file must be decoded
    again, `announce` is called again, and what `use` returned before does not count.
    Raise MediaError if the file is not a readable video, if it is damaged (`partial` says how many seconds are intact),
    or if it has no frame in the range. With `keep_damaged`, return the frames before the damage instead; otherwise
    `use` sees no frame of a file whose packets show the damage.
    With `seek`, reach a few frames of a long video by seeking: the frames are the same, but damage between them is not
    found. With `divide` as well, raise Divided after `announce` if several processes should decode the video.
    """

    def decode(facts: Probe) -> Decoded[T]:
        times = pick(sample_times(facts.duration, fps, start, stop), count)
        if not times:
            raise MediaError(path, f"lasts {facts.duration:.2f} s: no frame in the requested range")
        indices = [facts.shown_at(t) for t in times]
        by_pyav = partial(_decode_wanted, seek=seek, divide=divide)
        read = decode_webp if webp else decode_indices if decoder == "decord" else by_pyav
        if facts.damage and not keep_damaged:
            intact, _, _ = read(path, facts, set(indices), lambda _: None, beat, lambda: None)
            raise MediaError(path, facts.damage, partial=_intact_seconds(times, indices, intact))
        plan = _plan(times, indices, facts.duration)
        used, damage, ignored = read(path, facts, set(indices), use, beat, lambda: announce(plan))
        if damage and not keep_damaged:
            raise MediaError(path, damage, partial=_intact_seconds(times, indices, used))
        damage = facts.damage or damage
        samples = _before_damage(facts, times, indices, used)
        if not samples:
            raise MediaError(path, damage or "no frame could be decoded")
        return Decoded(samples, len(facts.pts), facts.duration, damage, ignored)

    webp = is_animated_webp(path)
    facts = webp_times(path) if webp else read_times(path, beat)
    try:
        return decode(facts)
    except Untrusted:
        return decode(decoded_times(path, facts, beat))


def pick(times: Sequence[T], count: int | None) -> list[T]:
    """Return `count` of the times, spaced as numpy.linspace does; return all if there are no more than `count`."""
    if count is None or count >= len(times):
        return list(times)
    return [times[i] for i in np.linspace(0, len(times) - 1, count).astype(int)]


def read_times(path: Path, beat: Callable[[], None] = lambda: None) -> Probe:
    """Return the times of a video's frames, from its packets if they can be trusted.

    Raise MediaError if the file is not a readable video, or if its times are impossible.
    """
    facts = probe(path, beat)
    return facts if facts.by_packet else decoded_times(path, facts, beat)


def decoded_times(path: Path, facts: Probe, beat: Callable[[], None] = lambda: None) -> Probe:
    """Decode every frame of a file, and return the frames' own times in the order in which they are shown.

    Raise MediaError if these times go back, or if no frame can be decoded.
    """
    times, pts, last, damage, span = array("q"), array("q"), 0, "", Span(path, facts.time_base)
    try:
        for shown in shown_frames(path, beat):
            span.add(shown.time)
            times.append(shown.time)
            pts.append(UNKNOWN if shown.frame.pts is None else shown.frame.pts)
            last = shown.length
    except Damage as error:
        damage = str(error)
    damage = facts.damage or damage
    if not times:
        raise MediaError(path, damage or "no frame could be decoded")
    ordered = in_order(path, times, pts, facts.time_base)
    return Probe(ordered, facts.time_base, Span.of(path, facts.time_base, ordered, last), False, damage)


def _plan(times: Sequence[Fraction], indices: Sequence[int], duration: float) -> Plan:
    """Return the plan of samples at these times, which show the frames of these numbers."""
    _, shown_N = np.unique(np.array(indices, np.int64), return_inverse=True)
    return Plan(np.array(times, np.float64), shown_N.astype(np.int64), duration)


def _intact_seconds(times: Sequence[Fraction], indices: Sequence[int], used: Container[int]) -> float | None:
    """Return the time of the last sample before the first frame that is not in `used`; None if there is none."""
    intact = [t for t, _ in takewhile(lambda pair: pair[1] in used, zip(times, indices, strict=True))]
    return float(intact[-1]) if intact else None


def _before_damage(
    facts: Probe, times: Sequence[Fraction], indices: Sequence[int], used: dict[int, T]
) -> list[Sample[T]]:
    """Return the samples up to the first frame that is not in `used`."""
    samples = []
    for t, index in zip(times, indices, strict=True):
        if index not in used:
            break
        since = float((facts.pts[index] - facts.pts[0]) * facts.time_base)
        samples.append(Sample(float(t), since, index, used[index]))
    return samples


def _decode_wanted(
    path: Path,
    facts: Probe,
    wanted: set[int],
    use: Callable[[np.ndarray], T],
    beat: Callable[[], None],
    begin: Callable[[], None],
    *,
    seek: bool = False,
    divide: bool = False,
) -> tuple[dict[int, T], str, str]:
    """Return what `use` returned for each wanted frame number, the damage if frames are missing, and what is ignored.

    With times of packets, a second pass decodes every frame if frames are missing after the pass that skips. Raise
    Untrusted if the packets' times contradict the frames.
    """
    if seek and facts.packets and not facts.damage:
        numbers = sorted(wanted)
        plan = Stretches(facts.packets, [facts.pts[n] for n in numbers])
        with contextlib.suppress(Doubt):
            found = decode_sparse(path, plan, use, beat, begin)
            if found:
                return dict(zip(numbers, found[0], strict=True)), "", found[1]
            if divide and (pieces := plan.pieces()):
                begin()
                raise Divided(pieces)
    used: dict[int, T] = {}
    for skipping in (True, False) if facts.by_packet else (False,):
        used.clear()
        begin()
        damage, ignored = _decode_once(path, facts, wanted, used, use, beat, skipping=skipping)
        if not damage:
            break
    return used, damage, ignored


def _decode_once(
    path: Path,
    facts: Probe,
    wanted: set[int],
    used: dict[int, T],
    use: Callable[[np.ndarray], T],
    beat: Callable[[], None],
    *,
    skipping: bool,
) -> tuple[str, str]:
    """Decode the file once and add frames to `used` until all are there. Return the damage, and what is ignored."""
    ignored, number = "", -1
    try:
        for shown in shown_frames(path, beat, {facts.pts[i] for i in wanted} if skipping else None):
            number = _number(facts, shown.frame.pts, number) if facts.by_packet else number + 1
            if number in wanted:
                used[number] = use(shown.view.picture(shown.frame))
                ignored = shown.view.ignored
            if len(used) == len(wanted):
                return "", ignored
    except Damage as error:
        return str(error), ignored
    if facts.by_packet and not skipping:
        raise Untrusted
    return f"{len(wanted) - len(used)} of {len(wanted)} frames could not be decoded", ignored


def _number(facts: Probe, pts: int | None, before: int) -> int:
    """Return the number of the frame with this pts, which is shown after frame `before` (-1: it is the first).

    Raise Untrusted if no packet states this time, or if the frame is not shown after `before`.
    """
    number = -1 if pts is None else bisect_left(facts.pts, pts)
    if not 0 <= number < len(facts.pts) or facts.pts[number] != pts or number <= before or (before < 0 < number):
        raise Untrusted
    return number

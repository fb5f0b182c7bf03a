"""Compare a record of scenes with its video: scenes are placed by frame numbers, so the video must be the record's."""

from collections.abc import Sequence
from dataclasses import dataclass

from ma2mba.annotations.scenewalk import Scene

SECONDS, SHARE = 1.0, 0.03
"""A time may differ by this many seconds, or by this share of itself: records round their times."""


@dataclass(frozen=True)
class Footage:
    """A video: its number of frames, and its duration in seconds."""

    frames: int
    duration: float

    @property
    def rate(self) -> float:
        """Frames per second, on average."""
        return self.frames / self.duration if self.duration > 0 else 0.0


def contradiction(scenes: Sequence[Scene], total_time: float | None, video: Footage) -> str:
    """Return how a video contradicts the record of its scenes, "" if it does not.

    `total_time` is the duration in the record. Scenes that end early are accepted only if their own times say so.
    """
    last, rate = scenes[-1], video.rate
    end = max(scene.end_frame for scene in scenes)
    if last.start_frame >= video.frames:
        return f"its last scene starts at frame {last.start_frame}, but it has {video.frames} frames"
    if total_time is not None and not _near(video.duration, total_time):
        return f"lasts {video.duration:.2f} s, but its record says {total_time:g} s (total_time)"
    if rate and not _near(end / rate, video.duration) and end > video.frames:
        return f"its last scene ends at frame {end}, but it has {video.frames} frames"
    other = _rate_of_seconds(scenes)
    if rate and other and not _near(end / rate, end / other):
        return f"has {rate:.3g} frames per second, but the times of its scenes say {other:.3g}"
    if rate and total_time and not _near(end / rate, total_time) and not _confirmed(scenes, rate, other):
        return (
            f"has {video.frames} frames in {video.duration:.2f} s, but its record has {end} frames "
            f"(last end_frame) in {total_time:g} s (total_time)"
        )
    return ""


def _near(seconds: float, other: float) -> bool:
    return abs(seconds - other) <= max(SECONDS, SHARE * other)


def _rate_of_seconds(scenes: Sequence[Scene]) -> float:
    """Return the frame rate that `start_fps` and `end_fps` imply if they are seconds; 0 if they are something else.

    The data set does not document what they count: they are taken for seconds if one frame rate fits all scenes.
    """
    times = [scene.fps for scene in scenes]
    known = [time for time in times if time is not None]
    if len(known) < len(times) or len({time for pair in known for time in pair}) < 3 or known[-1][1] <= 0:
        return 0.0
    rate = scenes[-1].end_frame / known[-1][1]
    fits = all(
        _near(scene.start_frame / rate, start) and _near(scene.end_frame / rate, end)
        for scene, (start, end) in zip(scenes, known, strict=True)
    )
    return rate if fits else 0.0


def _confirmed(scenes: Sequence[Scene], rate: float, of_seconds: float) -> bool:
    """Return True if `start_fps` and `end_fps` give the video's frame rate: as seconds, or as the rate itself."""
    rates = [value for scene in scenes for value in scene.fps or (0.0,)]
    return bool(of_seconds) or all(abs(value - rate) <= SHARE * rate for value in rates)

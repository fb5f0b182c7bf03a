"""Plan a toy video (what it shows at which time) and write it as H.264."""

import itertools
import random
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ma2mba.files import atomic_path
from ma2mba.video.synthetic.scenes import (
    BACKGROUNDS,
    COLOURS,
    NEEDLE_EXTENT,
    PATTERNS,
    SHAPES,
    SIZE,
    Scene,
    draw_needle,
    draw_scene,
)

FPS = 8
"""Frames per second of every toy video."""
MARGIN = 1
"""Seconds without a needle at each end of a video of 4 s or more."""


@dataclass(frozen=True)
class Needle:
    """The symbol `kind`, visible on frames [first, stop), with its top left corner at pixel (left, top)."""

    kind: str
    first: int
    stop: int
    left: int
    top: int

    @property
    def seconds(self) -> list[int]:
        """The whole seconds at which the needle is visible: sampling at 1 FPS sees it once or twice."""
        return [k for k in range(self.stop // FPS + 1) if self.shown_at(k)]

    def shown_at(self, seconds: float) -> bool:
        """Return True if the needle is visible at this second of the video."""
        return self.first <= seconds * FPS < self.stop


@dataclass(frozen=True)
class Movie:
    """The content of one video of `seconds` whole seconds."""

    name: str
    seconds: int
    scenes: tuple[Scene, ...]
    needle: Needle | None

    def scene_at(self, seconds: float) -> Scene:
        """Return the scene that is visible at `seconds`."""
        return next(scene for scene in self.scenes if seconds < scene.stop)


def plan_movie(
    name: str, seconds: int, kind: str | None, scenes: int, rng: random.Random, depth: float | None = None
) -> Movie:
    """Plan a random video of `scenes` different scenes with a needle of this kind; with None, without a needle.

    `depth`: see `plan_needle`.
    """
    cuts = [0, *_cuts(seconds, scenes, rng), seconds]
    subjects = rng.sample([(shape, colour) for shape in SHAPES for colour in COLOURS], scenes)
    planned, last = [], ""
    for (shape, colour), (start, stop) in zip(subjects, itertools.pairwise(cuts), strict=True):
        last = rng.choice([name for name in BACKGROUNDS if name != last])
        path = rng.uniform(0, 6.28), rng.uniform(0.3, 0.9)
        planned.append(Scene(shape, colour, last, rng.choice(PATTERNS), start, stop, *path))
    return Movie(name, seconds, tuple(planned), plan_needle(seconds, kind, rng, depth) if kind else None)


def _cuts(seconds: int, scenes: int, rng: random.Random) -> list[int]:
    """Return the seconds at which a new scene starts. Each scene has at least half the average length."""
    shortest = max(1, seconds // (2 * scenes))
    spare = sorted(rng.randint(0, seconds - shortest * scenes) for _ in range(scenes - 1))
    return [shortest * (i + 1) + extra for i, extra in enumerate(spare)]


def plan_needle(seconds: int, kind: str, rng: random.Random, depth: float | None = None) -> Needle:
    """Return a needle of 1 to 2 s at a random time. Any span of at least 1 s contains a whole second.

    `depth` chooses the time: 0 is the earliest, 1 the latest.
    """
    margin = MARGIN if seconds >= 4 else 0
    room = (seconds - 2 * margin) * FPS
    length = min(rng.randint(FPS, 2 * FPS), room)
    # without margins, the last sampled frame is at seconds - 1: the needle must start by then
    latest = (seconds - margin) * FPS - length if margin else min(seconds * FPS - length, (seconds - 1) * FPS)
    earliest = margin * FPS
    first = rng.randint(earliest, latest) if depth is None else earliest + round(depth * (latest - earliest))
    spot = SIZE - NEEDLE_EXTENT
    return Needle(kind, first, first + length, rng.randint(0, spot), rng.randint(0, spot))


def draw_frame(movie: Movie, index: int) -> np.ndarray:
    """Return frame number `index`: uint8 RGB (SIZE, SIZE, 3)."""
    picture = draw_scene(movie.scene_at(index / FPS), index / FPS)
    needle = movie.needle
    if needle and needle.first <= index < needle.stop:
        draw_needle(picture, needle.kind, needle.left, needle.top)
    return picture


def write_movie(movie: Movie, path: Path, fps: int = FPS, key_seconds: int = 10) -> None:
    """Write `movie` to `path` as H.264 (yuv420p, mp4), atomically, with a key frame every `key_seconds`.

    `fps` divides FPS: a file with fewer frames a second shows the same pictures at whole seconds.
    """
    with atomic_path(path, sync=False) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        options = {"preset": "ultrafast", "crf": "20", "threads": "1", "g": str(key_seconds * fps)}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        stream.codec_context.thread_count = 1
        for number in range(movie.seconds * fps):
            picture = draw_frame(movie, number * (FPS // fps))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def scene_count(seconds: int, rng: random.Random) -> int:
    """Return a random number of scenes for this length: 1 below 4 s, 3 to 6 from 30 s on."""
    if seconds < 4:
        return 1
    return rng.randint(3, 6) if seconds >= 30 else rng.randint(1, min(3, seconds // 4 + 1))

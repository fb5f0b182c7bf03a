"""Plan a toy video (what is seen when) and write it as H.264."""

import itertools
import random
from collections.abc import Iterator
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
    NEEDLES,
    PATTERNS,
    SHAPES,
    SIZE,
    Scene,
    draw_needle,
    draw_scene,
)

FPS = 8
"""Frames a second of every toy video."""
MARGIN = 1
"""Seconds at either end of a video of 4 s or more that hold no needle."""


@dataclass(frozen=True)
class Needle:
    """The symbol `kind` on frames [first, stop) at (left, top) pixels."""

    kind: str
    first: int
    stop: int
    left: int
    top: int

    @property
    def seconds(self) -> list[int]:
        """The whole seconds at which it is visible: what sampling at 1 FPS sees, always one or two."""
        return [k for k in range(self.stop // FPS + 1) if self.first <= k * FPS < self.stop]


@dataclass(frozen=True)
class Movie:
    """Everything there is to see in one video of `seconds` whole seconds."""

    name: str
    seconds: int
    scenes: tuple[Scene, ...]
    needle: Needle | None

    def scene_at(self, seconds: float) -> Scene:
        return next(scene for scene in self.scenes if seconds < scene.stop)


def plan_movie(name: str, seconds: int, kind: str | None, scenes: int, rng: random.Random) -> Movie:
    """A video of `scenes` different scenes and, unless `kind` is None, a needle of that kind, drawn from `rng`."""
    cuts = [0, *_cuts(seconds, scenes, rng), seconds]
    subjects = rng.sample([(shape, colour) for shape in SHAPES for colour in COLOURS], scenes)
    planned, last = [], ""
    for (shape, colour), (start, stop) in zip(subjects, itertools.pairwise(cuts), strict=True):
        last = rng.choice([name for name in BACKGROUNDS if name != last])
        path = rng.uniform(0, 6.28), rng.uniform(0.3, 0.9)
        planned.append(Scene(shape, colour, last, rng.choice(PATTERNS), start, stop, *path))
    return Movie(name, seconds, tuple(planned), plan_needle(seconds, kind, rng) if kind else None)


def _cuts(seconds: int, scenes: int, rng: random.Random) -> list[int]:
    """Whole seconds at which a new scene starts, each scene at least half as long as the average one."""
    shortest = max(1, seconds // (2 * scenes))
    spare = sorted(rng.randint(0, seconds - shortest * scenes) for _ in range(scenes - 1))
    return [shortest * (i + 1) + extra for i, extra in enumerate(spare)]


def plan_needle(seconds: int, kind: str, rng: random.Random) -> Needle:
    """Place a needle of 1.0 to 2.0 s at a random time; any span of at least 1 s holds a whole second."""
    margin = MARGIN if seconds >= 4 else 0
    room = (seconds - 2 * margin) * FPS
    length = min(rng.randint(FPS, 2 * FPS), room)
    # the last sampled frame of a video without margins is at seconds - 1, so it must start by then
    latest = (seconds - margin) * FPS - length if margin else min(seconds * FPS - length, (seconds - 1) * FPS)
    first = rng.randint(margin * FPS, latest)
    spot = SIZE - NEEDLE_EXTENT
    return Needle(kind, first, first + length, rng.randint(0, spot), rng.randint(0, spot))


def render(movie: Movie) -> Iterator[np.ndarray]:
    """Every frame in order: uint8 RGB (SIZE, SIZE, 3)."""
    for index in range(movie.seconds * FPS):
        yield draw_frame(movie, index)


def draw_frame(movie: Movie, index: int) -> np.ndarray:
    """Frame number `index`: uint8 RGB (SIZE, SIZE, 3)."""
    picture = draw_scene(movie.scene_at(index / FPS), index / FPS)
    needle = movie.needle
    if needle and needle.first <= index < needle.stop:
        draw_needle(picture, needle.kind, needle.left, needle.top)
    return picture


def write_movie(movie: Movie, path: Path) -> None:
    """Write `movie` as H.264 (yuv420p, mp4) to `path`, whole or not at all."""
    with atomic_path(path, sync=False) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        options = {"preset": "ultrafast", "crf": "20", "threads": "1", "g": str(10 * FPS)}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        stream.codec_context.thread_count = 1
        for index, picture in enumerate(render(movie)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def needle_video(path: Path, seconds: int, kind: str, seed: int) -> Movie:
    """Write a video of `seconds` s (at least 2) that shows the symbol `kind` once; returns what is in it.

    Raises KeyError for an unknown kind, ValueError for a shorter video.
    """
    if seconds < 2:
        raise ValueError(f"a needle video lasts at least 2 s, not {seconds}")
    if kind not in NEEDLES:
        raise KeyError(f"{kind}: the kinds are {', '.join(NEEDLES)}")
    rng = random.Random(f"{seed}/{seconds}/{kind}")
    movie = plan_movie(Path(path).stem, seconds, kind, scene_count(seconds, rng), rng)
    write_movie(movie, Path(path))
    return movie


def scene_count(seconds: int, rng: random.Random) -> int:
    """How many scenes a video of this length has: 1 in the shortest, 3 to 6 from 30 s on."""
    if seconds < 4:
        return 1
    return rng.randint(3, 6) if seconds >= 30 else rng.randint(1, min(3, seconds // 4 + 1))

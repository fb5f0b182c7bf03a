"""Toy videos with needles: other processes write each video shortly before the model watches it."""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ma2mba.evaluation.asking import CannotWatch, watch_medium
from ma2mba.evaluation.evaluate import Questions
from ma2mba.evaluation.items import Item
from ma2mba.evaluation.needle import writer
from ma2mba.evaluation.needle.grid import Grid, Place, question_about
from ma2mba.evaluation.needle_report import picture_path
from ma2mba.evaluation.sharing import Part
from ma2mba.inference.chat import VideoChat
from ma2mba.video.frames import FrameReader
from ma2mba.video.synthetic.movie import Movie, plan_movie, scene_count

VIDEOS = "videos"
"""The folder of the videos, in --out."""
AHEAD = 4
"""Videos that are written before the model watches them."""
MOST_WRITERS = 4


class ToyVideos:
    """The videos of a grid, each with its own needle, in `folder`. A context manager.

    A video is removed after its question is answered, unless `keep`.
    """

    def __init__(self, grid: Grid, folder: Path, part: Part, *, keep: bool = False):
        self._grid, self._folder, self._keep, self._alone = grid, folder, keep, part.of == 1
        self._places = part.share(list(grid.places()))
        self._order = {place.id: number for number, place in enumerate(self._places)}
        self._writing: dict[int, Future[None]] = {}
        writers = max(1, min(MOST_WRITERS, len(os.sched_getaffinity(0)) // 2))
        self._pool = ProcessPoolExecutor(writers, multiprocessing.get_context("spawn"), writer.begin)

    def questions(self) -> Questions:
        items = [question_about(place, self._grid, Path(VIDEOS, _name(place))) for place in self._grid.places()]
        return Questions(items, "toy videos with needles", options=self._grid.options, watch=self.watch)

    def watch(
        self, chat: VideoChat, questions: Sequence[Item], frames: str, reader: FrameReader
    ) -> Sequence[VideoChat]:
        """Watch the video of one question. Raise CannotWatch if the video cannot be written."""
        (question,) = questions
        number = self._order[question.id]
        path = self._written(number)
        try:
            return watch_medium(chat, [replace(question, medium=path)], frames, reader)
        finally:
            del self._writing[number]
            if not self._keep:
                path.unlink(missing_ok=True)

    def _written(self, number: int) -> Path:
        """Return the path of a video as soon as it is written. The next ones are being written then."""
        for ahead in range(number, min(number + 1 + AHEAD, len(self._places))):
            if ahead not in self._writing:
                self._writing[ahead] = self._begin(self._places[ahead])
        try:
            self._writing[number].result()
        except OSError as error:
            raise CannotWatch(
                f"{self._folder / VIDEOS}: cannot be written ({error.strerror}). Free space, or name another --out, "
                "then run the command again"
            ) from error
        except BrokenProcessPool as error:
            raise CannotWatch(
                "a process that writes toy videos was killed, perhaps because the machine ran out of memory. "
                "Run the same command again to resume"
            ) from error
        return self._path(self._places[number])

    def _begin(self, place: Place) -> "Future[None]":
        first = place.number < len(self._grid.depths)
        picture = picture_path(self._folder, place.id) if first else None
        return self._pool.submit(writer.write_video, toy_movie(place, self._grid), self._path(place), picture)

    def _path(self, place: Place) -> Path:
        return self._folder / VIDEOS / _name(place)

    def __enter__(self) -> "ToyVideos":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        if not self._keep:
            for number in self._writing:
                self._path(self._places[number]).unlink(missing_ok=True)
            if self._alone:
                with suppress(OSError):  # it is not there, or holds what somebody else has put there
                    (self._folder / VIDEOS).rmdir()


def _name(place: Place) -> str:
    return f"{place.id}.mp4"


def toy_movie(place: Place, grid: Grid) -> Movie:
    """Return the content of the video of a place. Another seed gives other videos."""
    rng = place.random(grid)
    scenes = scene_count(place.length, rng)
    return plan_movie(place.id, place.length, place.kind, scenes, rng, place.depth)

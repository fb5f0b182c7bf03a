"""Needles planted into one's own videos: their sampled frames are changed after decoding, and nothing is written."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ma2mba.errors import UserError
from ma2mba.evaluation.evaluate import Questions
from ma2mba.evaluation.items import Item
from ma2mba.evaluation.needle.grid import Grid, Place, question_about
from ma2mba.evaluation.needle.writer import save_picture
from ma2mba.evaluation.needle_report import picture_path
from ma2mba.inference.chat import VideoChat, parse_frames
from ma2mba.inference.reading import prompt_before
from ma2mba.inference.state_file import Watched
from ma2mba.inference.variants import Change, watch_variants
from ma2mba.video.frames import FrameReader, Window
from ma2mba.video.synthetic.movie import Needle
from ma2mba.video.synthetic.scenes import NEEDLE_EXTENT, NEEDLES, SIZE, stamp


class Haystacks:
    """One's own videos, in which the needles of a grid are planted. The questions take the videos in turn."""

    def __init__(self, grid: Grid, videos: Sequence[Path], folder: Path):
        self._grid, self._videos, self._folder = grid, videos, folder
        self._places = {place.id: place for place in grid.places()}

    def questions(self) -> Questions:
        """Return the questions. Raise UserError for a video that cannot be read or is shorter than a length."""
        require_lengths(self._videos, max(self._grid.lengths))
        items = [
            question_about(place, self._grid, self._videos[place.number % len(self._videos)], place.length)
            for place in self._places.values()
        ]
        options = self._grid.options | {"haystacks": len(self._videos)}
        return Questions(items, "needles in own videos", options=options, watch=self.watch, apart=True)

    def watch(
        self, chat: VideoChat, questions: Sequence[Item], frames: str, reader: FrameReader
    ) -> Sequence[VideoChat]:
        """Watch a video once. Return for each question a chat that has seen its needle in the video."""
        first, count = questions[0], parse_frames(frames)
        session, before = chat.before_video()
        changes = [self._change(self._places[question.id]) for question in questions]
        size, window = session.model.config.image_size, Window(first.start, first.end)
        with reader.stream(first.medium, size, count=count, window=window) as stream:
            variants = watch_variants(session, prompt_before(before), stream, changes)
            shown, seconds = len(stream.shown_N), stream.duration
        name = first.medium.name.encode(errors="backslashreplace").decode()
        seen = Watched(name=name, content=None, seconds=seconds, frames=shown, sampling=frames)
        return [chat.after_video(variant, seen) for variant in variants]

    def _change(self, place: Place) -> Change:
        needle = place.needle(self._grid)
        picture = picture_path(self._folder, place.id) if place.number < len(self._grid.depths) else None
        return Change(needle.shown_at, partial(_draw, needle, picture))


def _draw(needle: Needle, kept: Path | None, picture_HWC: np.ndarray) -> None:
    """Draw a needle over a square picture of any size, in place. Keep the picture as PNG."""
    size = len(picture_HWC)
    colour, form = NEEDLES[needle.kind]
    extent = size * NEEDLE_EXTENT // SIZE
    stamp(picture_HWC, form, colour, extent, size * needle.left // SIZE, size * needle.top // SIZE)
    if kept:
        save_picture(picture_HWC, kept)


def require_lengths(videos: Sequence[Path], length: int) -> None:
    """Raise UserError if a video cannot be read, or if it is shorter than `length` seconds."""
    with FrameReader() as reader:
        for video in videos:
            try:
                with reader.stream(video, SIZE, count=1) as stream:
                    seconds = stream.duration
            except UserError as error:
                raise UserError(f"--haystack {error}") from error
            if seconds < length:
                raise UserError(
                    f"--haystack {video}: lasts {seconds:.1f} s, and the longest of --lengths is {length} s. Give a "
                    "longer video, or shorter lengths"
                )

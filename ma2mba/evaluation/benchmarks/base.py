"""What every benchmark has: where its files are, how its questions are read, and how its results are summed up."""

import os
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar

from ma2mba.annotations.fields import RecordError
from ma2mba.annotations.files import Files
from ma2mba.annotations.media import VIDEO_SUFFIX, MediaFolder
from ma2mba.annotations.published import Layout
from ma2mba.annotations.records import BadRecord, Reader, Record
from ma2mba.errors import UserError
from ma2mba.evaluation.items import Item
from ma2mba.files import OutsideFolder, fits_utf8, inside

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    name            as `--benchmark` names it
    title           as its authors write it
    layout          its splits and their annotation files, as published
    items           makes the questions
    subtitles       patterns of the files with subtitles, () if it has none
    mean_over_tasks True if the authors report the mean of the tasks' accuracies, not of the questions'
    open_ended      True if answers are texts: they are judged word by word, where a published result may be a model's
                    judgement
    """

    name: str
    title: str
    layout: Layout
    items: "Callable[[Source], Iterator[Item]]"
    subtitles: tuple[str, ...] = ()
    mean_over_tasks: bool = False
    open_ended: bool = False


class Source:
    """The files of a benchmark: its annotations, and the folder of its videos."""

    def __init__(self, folder: Path, media: Path, files: Files, *, subtitles: bool = False):
        self.folder, self.media, self.files, self.subtitles = folder, media, files, subtitles
        self._videos = MediaFolder(media)
        self._found: dict[tuple[tuple[str, ...], tuple[str, ...]], Path] = {}

    def records(self, read: Reader[R | BadRecord], media: Path | None = None) -> Iterator[R]:
        """Yield the records of the annotation files. Raise UserError at the first malformed one, with its place."""
        for record in read(self.files, media or self.media):
            if isinstance(record, BadRecord):
                raise UserError(f"{record.where}: {record.reason}. Correct this record, or get the file again")
            if not all(map(fits_utf8, _texts(astuple(record)))):
                raise UserError(f"{record.where}: contains an unpaired surrogate. Correct this record")
            yield record

    def video(self, where: str, names: Sequence[str], places: Sequence[str]) -> Path:
        """Return the path of a video: the first of `names` that is in one of `places`, folders below the media folder.

        A name may have any suffix of a video, or none. If no such video exists, return where the first would be. Raise
        UserError, with the record's place `where`, for a name that leads out of the folder.
        """
        key = tuple(names), tuple(places)
        if key not in self._found:
            self._found[key] = self._look(where, names, places)
        return self._found[key]

    def _look(self, where: str, names: Sequence[str], places: Sequence[str]) -> Path:
        try:
            for place in places:
                for name in names:
                    if found := self._in(place, name):
                        return inside(self.media, found, where)
            first = names[0] if VIDEO_SUFFIX.fullmatch(Path(names[0]).suffix) else f"{names[0]}.mp4"
            return inside(self.media, str(Path(places[0], first)), where)
        except (RecordError, OutsideFolder) as error:
            reason = error.reason if isinstance(error, OutsideFolder) else str(error)
            raise UserError(f"{where}: video {names[0]!r:.200}: {reason}. Correct this record") from error

    def _in(self, place: str, name: str) -> str | None:
        """Return the path of an existing video below the media folder."""
        path = self._videos.path(str(Path(place, name)))
        if os.path.isfile(path):  # False for a name that is too long
            return str(Path(place, name))
        stem = name if not VIDEO_SUFFIX.fullmatch(Path(name).suffix) else str(Path(name).with_suffix(""))
        found = self._videos.find(str(Path(place, stem)))
        return found if os.path.isfile(self.media / found) else None


def lettered(options: Sequence[str], form: str = "{letter}. {text}") -> str:
    """Return options as lines, each with its letter in a form such as "(A) red"."""
    return "\n".join(
        form.format(letter=letter, text=text) for letter, text in zip(string.ascii_uppercase, options, strict=False)
    )


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _texts(inner)

"""Records, bad records, and the reader that parses every record of a format's files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ma2mba.annotations.fields import RecordError
from ma2mba.annotations.files import Files, Records, Table
from ma2mba.annotations.media import MediaFolder

T = TypeVar("T")
Parse = Callable[[Any, MediaFolder, str], T]
"""(JSON value or row, media folder, place of the record) -> parsed record. Raises RecordError."""
Reader = Callable[[Files, Path], Iterator[T]]
"""(annotation files, media folder) -> parsed records. Raises UserError for a file of another format."""
_SHOWN = 1000
"""Characters of a record that its reject repeats."""
_ID_KEYS = ("id", "question_id", "videoid", "qid")
_MEDIA_KEYS = ("video", "image", "video_name", "videoid", "url")


@dataclass(frozen=True)
class Record:
    """The fields that all formats share.

    `where` is the record's place, as in "train.csv line 3". `media` is the path of the image or video below the media
    folder, "" for text alone.
    """

    where: str
    media: str


@dataclass(frozen=True)
class BadRecord:
    """A record that breaks its format: its place, its id and medium where they can be read ("" otherwise), and why."""

    where: str
    id: str
    media: str
    reason: str

    @classmethod
    def of(cls, value: Any, where: str, reason: str) -> "BadRecord":
        """Return the bad record of a JSON value or row that could not be parsed."""
        fields = value if isinstance(value, dict) else {}

        def first(keys: tuple[str, ...]) -> str:
            given = (fields[key] for key in keys if isinstance(fields.get(key), str | int | float) and fields[key])
            return _short(str(next(given, "")))

        return cls(where, first(_ID_KEYS), first(_MEDIA_KEYS), _short(reason))


def _short(text: str) -> str:
    """Return a text, without its middle if it is too long for a message."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 2 :]}"


def each(records_of: Callable[[Path], Records], parse: Parse[T], columns: Sequence[str] = ()) -> Reader[T | BadRecord]:
    """Return the reader of a format in which every record is independent of the others.

    `columns`: the columns that a table of a data set must have, and that `parse` reads; () means all its columns.
    """

    def read(files: Files, media: Path) -> Iterator[T | BadRecord]:
        folder = MediaFolder(media)
        for name, file in files:
            for where, value in records_in(file, records_of, columns):
                yield try_parse(parse, value, folder, f"{name} {where}")

    return read


def records_in(file: Path | Table, records_of: Callable[[Path], Records], columns: Sequence[str] = ()) -> Records:
    """Return the records of a table, or of a file in the format that `records_of` reads."""
    return records_of(file) if isinstance(file, Path) else file.records(columns)


def try_parse(parse: Parse[T], value: Any, folder: MediaFolder, where: str) -> T | BadRecord:
    """Return the parsed record, or a bad record when `parse` raises RecordError."""
    try:
        if isinstance(value, RecordError):
            raise value
        return parse(value, folder, where)
    except RecordError as error:
        return BadRecord.of(value, where, str(error))

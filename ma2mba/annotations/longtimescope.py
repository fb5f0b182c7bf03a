"""LongTimeScope: rows of {video, input, answer, type, length}: clips hidden in videos of 1 minute to 8 hours.

`input` is the whole prompt, options included. `length` is the video's length in seconds.
"""

from dataclasses import dataclass
from typing import Any

from ma2mba.annotations.choices import need_answer, need_options, split_options
from ma2mba.annotations.fields import RecordError, need_text
from ma2mba.annotations.files import json_records
from ma2mba.annotations.media import MediaFolder
from ma2mba.annotations.records import Record, each


@dataclass(frozen=True)
class LongTimeScopeRecord(Record):
    """A question. `media` is video. `answer` is the index of the right option, or a text if `options` is empty."""

    id: str
    type: str
    length: str
    input: str
    question: str
    options: tuple[str, ...]
    answer: int | str


def _parse(value: Any, folder: MediaFolder, where: str) -> LongTimeScopeRecord:
    media = folder.inside(need_text(value, "video"))
    given = need_text(value, "input" if "input" in value or "question" not in value else "question")
    question, options = split_options(given)
    if "options" in value or "candidates" in value:
        options = need_options(value, "options" if "options" in value else "candidates")
    number = value.get("id", value.get("index", ""))
    return LongTimeScopeRecord(
        where,
        media,
        str(number) if isinstance(number, str | int) else "",
        need_text(value, "type"),
        _length(value),
        given,
        question,
        options,
        need_answer(value, "answer", options) if options else need_text(value, "answer"),
    )


def _length(value: Any) -> str:
    """Return the length in seconds as text. Raise RecordError if there is none."""
    length = value.get("length")
    if isinstance(length, bool) or not isinstance(length, int | float | str) or not str(length).strip():
        raise RecordError(f"length is {length!r:.100}, not a number of seconds")
    return f"{length:g}" if isinstance(length, float) else str(length).strip()


read = each(json_records, _parse)

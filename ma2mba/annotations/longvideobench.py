"""LongVideoBench: a JSON list of questions (`candidates`), or rows of a table (`option0` ... `option4`)."""

from dataclasses import dataclass
from typing import Any

from ma2mba.annotations.choices import checked, need_options
from ma2mba.annotations.fields import RecordError, need, need_number, need_text
from ma2mba.annotations.files import json_records
from ma2mba.annotations.media import MediaFolder
from ma2mba.annotations.records import Record, each

COLUMNS = tuple(f"option{i}" for i in range(5))
NO_OPTION = "N/A"
"""The text of a column without an option, in a table."""


@dataclass(frozen=True)
class LongVideoBenchRecord(Record):
    """A question. `media` is video_path. `answer` is the index of the right option.

    `starting_timestamp` is the second of the subtitles at which the video begins.
    """

    id: str
    question: str
    options: tuple[str, ...]
    answer: int
    question_category: str
    duration_group: str
    duration: float
    subtitle_path: str
    starting_timestamp: float


def _parse(value: Any, folder: MediaFolder, where: str) -> LongVideoBenchRecord:
    media = folder.inside(need_text(value, "video_path"))
    options = need_options(value, "candidates") if "candidates" in value else _columns(value)
    return LongVideoBenchRecord(
        where,
        media,
        need_text(value, "id"),
        need_text(value, "question"),
        options,
        need_number(value, "correct_choice", len(options)),
        need_text(value, "question_category"),
        str(need(value, "duration_group", int)),
        _number(value, "duration"),
        folder.inside(value["subtitle_path"]) if isinstance(value.get("subtitle_path"), str) else "",
        _number(value, "starting_timestamp_for_subtitles"),
    )


def _columns(value: Any) -> tuple[str, ...]:
    options = [need_text(value, column) for column in COLUMNS if value.get(column, NO_OPTION) != NO_OPTION]
    return checked(options, "option0 ... option4")


def _number(value: Any, key: str) -> float:
    number = value.get(key, 0.0)
    if not isinstance(number, int | float) or isinstance(number, bool) or not abs(number) < 1e9:
        raise RecordError(f"{key} is {number!r:.100}, not a number")
    return float(number)


read = each(json_records, _parse)

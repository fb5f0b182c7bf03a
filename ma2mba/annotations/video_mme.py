"""Video-MME: Parquet rows of one question each. The video's file is named by `videoID`."""

from dataclasses import dataclass
from typing import Any

from ma2mba.annotations.choices import need_letter, need_options
from ma2mba.annotations.fields import RecordError, need_text
from ma2mba.annotations.files import json_records
from ma2mba.annotations.media import MediaFolder
from ma2mba.annotations.records import Record, each

LENGTHS = ("short", "medium", "long")


@dataclass(frozen=True)
class VideoMMERecord(Record):
    """A question. `media` is videoID. `answer` is the index of the right option; the options have no letters."""

    question_id: str
    duration: str
    domain: str
    sub_category: str
    task_type: str
    question: str
    options: tuple[str, ...]
    answer: int


def _parse(value: Any, folder: MediaFolder, where: str) -> VideoMMERecord:
    media = folder.inside(need_text(value, "videoID"))
    options = need_options(value, "options")
    duration = need_text(value, "duration")
    if duration not in LENGTHS:
        raise RecordError(f"duration is {duration!r:.100}, not one of {', '.join(LENGTHS)}")
    return VideoMMERecord(
        where,
        media,
        need_text(value, "question_id"),
        duration,
        value.get("domain", ""),
        value.get("sub_category", ""),
        need_text(value, "task_type"),
        need_text(value, "question"),
        options,
        need_letter(value, "answer", options),
    )


read = each(json_records, _parse)

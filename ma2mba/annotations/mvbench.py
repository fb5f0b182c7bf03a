"""MVBench: json/<task>.json, a list of {video, question, candidates, answer}; some have `start`, `end` in seconds."""

from dataclasses import dataclass
from typing import Any

from ma2mba.annotations.choices import need_option, need_options
from ma2mba.annotations.fields import MOST_SECONDS, RecordError, need_text
from ma2mba.annotations.files import json_records
from ma2mba.annotations.media import MediaFolder
from ma2mba.annotations.records import Record, each


@dataclass(frozen=True)
class MVBenchRecord(Record):
    """A question. `media` is video, below its task's folder. `answer` is the index of the right candidate."""

    question: str
    candidates: tuple[str, ...]
    answer: int
    start: float | None
    end: float | None


def _parse(value: Any, folder: MediaFolder, where: str) -> MVBenchRecord:
    media = folder.inside(need_text(value, "video"))
    candidates = need_options(value, "candidates")
    start, end = _second(value, "start"), _second(value, "end")
    if (start is None) != (end is None) or (start is not None and end is not None and end <= start):
        raise RecordError(f"start {start} and end {end} are not a stretch of time")
    question = need_text(value, "question")
    return MVBenchRecord(where, media, question, candidates, need_option(value, "answer", candidates), start, end)


def _second(value: Any, key: str) -> float | None:
    if key not in value:
        return None
    second = value[key]
    if not isinstance(second, int | float) or isinstance(second, bool) or not 0 <= second < MOST_SECONDS:
        raise RecordError(f"{key} is {second!r:.100}, not a number of seconds")
    return float(second)


read = each(json_records, _parse)

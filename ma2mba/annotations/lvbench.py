"""LVBench: video_info.meta.jsonl, a line for each video: {key, type, qa: [{uid, question, answer, question_type}]}.

The options follow the question in its text, "(A) ...". A table has one question a row: {video_path, question, answer},
some with `options`. The video's file is named by `key`, or by `video_path`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ma2mba.annotations.choices import need_letter, need_options, split_options
from ma2mba.annotations.fields import RecordError, need, need_text
from ma2mba.annotations.files import Files, json_records
from ma2mba.annotations.media import MediaFolder
from ma2mba.annotations.records import BadRecord, Record, records_in, try_parse


@dataclass(frozen=True)
class LVBenchRecord(Record):
    """A question. `media` is the video's key or path. `answer` is the index of the right option."""

    uid: str
    question: str
    options: tuple[str, ...]
    answer: int
    question_type: tuple[str, ...]


def read(files: Files, media: Path) -> Iterator[LVBenchRecord | BadRecord]:
    """Yield each question of each video."""
    folder = MediaFolder(media)
    for name, file in files:
        for place, value in records_in(file, json_records):
            where = f"{name} {place}"
            try:
                questions = _questions(value)
            except RecordError as error:
                yield BadRecord.of(value, where, str(error))
                continue
            for i, question in enumerate(questions, 1):
                yield try_parse(_parse, question, folder, f"{where}, question {i}" if _is_video(value) else where)


def _questions(value: Any) -> list[Any]:
    """Return the questions of a line, each with its video's key; a row of a table is one question."""
    if isinstance(value, RecordError):
        raise value
    if not _is_video(value):
        return [value]
    key = need_text(value, "key")
    return [
        question | {"video_path": key} if isinstance(question, dict) else question
        for question in need(value, "qa", list)
    ]


def _is_video(value: Any) -> bool:
    return isinstance(value, dict) and "qa" in value


def _parse(value: Any, folder: MediaFolder, where: str) -> LVBenchRecord:
    media = folder.inside(need_text(value, "video_path"))
    question, options = split_options(need_text(value, "question"))
    if "options" in value:
        options = need_options(value, "options")
    if not options:
        raise RecordError("has no options, and its question holds none")
    kinds = value.get("question_type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise RecordError("question_type is not a list of texts")
    uid = value["uid"] if isinstance(value.get("uid"), str | int) else ""
    return LVBenchRecord(where, media, str(uid), question, options, need_letter(value, "answer", options), tuple(kinds))

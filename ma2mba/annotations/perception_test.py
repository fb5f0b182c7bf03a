"""PerceptionTest: a JSON object, video id -> {metadata, mc_question: [{id, question, options[3], answer_id, ...}]}.

The rows of a data set are the values of this object, or one question each, with `video_name` and `question_id`. The
video's file is {video id} with any suffix.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ma2mba.annotations.fields import RecordError, need, need_number, need_text
from ma2mba.annotations.files import Files, Table, json_object
from ma2mba.annotations.media import MediaFolder
from ma2mba.annotations.records import BadRecord, Record, try_parse

OPTIONS = 3


@dataclass(frozen=True)
class PerceptionRecord(Record):
    """One question. `id` is unique within its video; `answer_id` is the index of the right option.

    `area` is the kind of skill that it asks for, "" if it is not given.
    """

    video_id: str
    id: int
    question: str
    options: tuple[str, ...]
    answer_id: int
    area: str = ""


def read(files: Files, media: Path) -> Iterator[PerceptionRecord | BadRecord]:
    """Yield each question of each video. A video without questions is a bad record."""
    folder = MediaFolder(media)
    for name_of_file, file in files:
        for place, video_id, video in _videos(file):
            where = f"{name_of_file} {place}"
            try:
                _check_id(video_id, video)
                name, questions = folder.find(video_id), need(video, "mc_question", list)
            except RecordError as error:
                yield BadRecord.of({"id": video_id, "video": video_id}, where, str(error))
                continue

            def parse(
                value: Any, _: MediaFolder, where: str, name: str = name, video_id: str = video_id
            ) -> PerceptionRecord:
                return PerceptionRecord(where, name, video_id, need_number(value, "id", 1 << 31), *_question(value))

            for i, question in enumerate(questions, 1):
                yield try_parse(parse, question, folder, f"{where}, question {i}")


def _videos(file: Path | Table) -> Iterator[tuple[str, str, Any]]:
    """Yield (place, video id, value) of each video. A data set may also hold the published object as a single row."""
    if isinstance(file, Path):
        yield from json_object(file)
        return
    for where, row in file.records():
        if isinstance(row, dict) and "video_name" in row:
            video_id = str(row["video_name"])
            question = row | {"id": row.get("question_id", row.get("id"))}
            yield where, video_id, {"metadata": {"video_id": video_id}, "mc_question": [question]}
        elif isinstance(row, dict) and "mc_question" not in row and "metadata" not in row:
            yield from ((f"{where}, {key}", key, value) for key, value in row.items())
        else:
            yield where, _video_id(row), row


def _video_id(row: Any) -> str:
    try:
        return need(need(row, "metadata", dict), "video_id", str)
    except RecordError:
        return ""


def _check_id(video_id: str, video: Any) -> None:
    if isinstance(video, RecordError):
        raise video
    given = need(need(video, "metadata", dict), "video_id", str)
    if given != video_id:
        raise RecordError(f"its key is {video_id}, but metadata.video_id is {given}")


def _question(value: Any) -> tuple[str, tuple[str, ...], int, str]:
    """Return question, options, the index of the right option, and the area. Raise RecordError when one is bad."""
    text, options = need_text(value, "question"), need(value, "options", list)
    if len(options) != OPTIONS or not all(isinstance(option, str) and option.strip() for option in options):
        raise RecordError(f"options are not {OPTIONS} texts")
    area = value["area"] if isinstance(value.get("area"), str) else ""
    return text, tuple(options), need_number(value, "answer_id", OPTIONS), area

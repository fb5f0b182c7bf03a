"""PerceptionTest: a JSON object, video id -> {metadata, mc_question[{id, question, options[3], answer_id}]}."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.clips import Clip, RecordError, Reject
from data_prep.sources.records import Files, VideoFinder, attempt, json_object, malformed, need, need_number, need_text
from data_prep.sources.wording import multiple_choice
from ma2mba.model.conversation import Turn

OPTIONS = 3


def read(files: Files, media: Path) -> Iterator[Clip | Reject]:
    """A clip for each question; a video without questions is rejected."""
    finder = VideoFinder(media)
    for file, path in files:
        for where, video, record in json_object(path):
            try:
                _check_id(video, record)
                name, questions = finder.name(video), need(record, "mc_question", list)
            except RecordError as error:
                yield malformed({"id": video, "video": video}, f"{file} {where}", str(error))
                continue

            def read_question(question: Any, media: Path, where: str, name: str = name, video: str = video) -> Clip:
                key = need_number(question, "id", 1 << 31)
                return Clip(f"{video}-{key}", media / name, name, False, _turns(question), (), where)

            for i, question in enumerate(questions, 1):
                yield attempt(read_question, question, media, f"{file} {where}, question {i}")


def _check_id(video: str, record: Any) -> None:
    named = need(need(record, "metadata", dict), "video_id", str)
    if named != video:
        raise RecordError(f"its metadata are of video {named}")


def _turns(question: Any) -> tuple[Turn, ...]:
    text, options = need_text(question, "question"), need(question, "options", list)
    if len(options) != OPTIONS or not all(isinstance(option, str) and option.strip() for option in options):
        raise RecordError(f"options are not {OPTIONS} texts")
    return multiple_choice(text, options, need_number(question, "answer_id", OPTIONS))

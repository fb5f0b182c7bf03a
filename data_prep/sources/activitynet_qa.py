"""ActivityNet-QA: *_q.json [{video_name, question, question_id}], *_a.json [{answer, type, question_id}], joined by id.

The annotations of a source list both kinds. The video's file is v_{video_name} with any suffix.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.clips import Clip, RecordError, Reject
from data_prep.sources.records import Files, VideoFinder, attempt, json_list, malformed, need, need_text
from data_prep.sources.wording import open_question
from ma2mba.errors import UserError


def read(files: Files, media: Path) -> Iterator[Clip | Reject]:
    """A clip for each question with its answer; questions and answers that stand alone are rejected."""
    questions, given = _kinds(files)
    answers: dict[str, tuple[str, Any]] = {}
    for where, record in given:
        try:
            key = need(record, "question_id", str)
            if key in answers:
                raise RecordError(f"question {key} is answered already in {answers[key][0]}")
            answers[key] = where, record
        except RecordError as error:
            yield malformed(record, where, str(error))
    finder, asked = VideoFinder(media), set[str]()

    def read_question(record: Any, media: Path, where: str) -> Clip:
        key = need(record, "question_id", str)
        if key in asked:
            raise RecordError(f"question {key} stands twice")
        asked.add(key)
        name = finder.name(f"v_{need_text(record, 'video_name')}")
        if key not in answers:
            raise RecordError(f"question {key} has no answer in any _a.json")
        turns = open_question(need_text(record, "question"), _answer(*answers[key]))
        return Clip(key, media / name, name, False, turns, (), where)

    for where, record in questions:
        yield attempt(read_question, record, media, where)
    for key, (where, record) in answers.items():
        if key not in asked:
            yield malformed(record, where, f"question {key} is in no _q.json")


def _kinds(files: Files) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """The records of questions and of answers, each with its place."""
    kinds: dict[str, list[tuple[str, Any]]] = {"_q": [], "_a": []}
    seen = [path.stem[-2:] for _, path in files]
    if set(seen) != {"_q", "_a"}:
        names = ", ".join(name for name, _ in files)
        raise UserError(f"{names}: activitynet_qa needs both kinds of files, *_q.json and *_a.json, and no others")
    for (name, path), kind in zip(files, seen, strict=True):
        kinds[kind] += [(f"{name} {where}", record) for where, record in json_list(path)]
    return kinds["_q"], kinds["_a"]


def _answer(where: str, record: Any) -> str:
    try:
        need(record, "type", int)
        return need_text(record, "answer")
    except RecordError as error:
        raise RecordError(f"its answer ({where}) {error}") from error

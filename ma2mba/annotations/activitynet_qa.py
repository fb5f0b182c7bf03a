"""ActivityNet-QA: *_q.json [{video_name, question, question_id}], *_a.json [{answer, type, question_id}], joined by id.

The annotation files must include both kinds. The rows of a data set may instead hold a question and its answer each.
The video's file is v_{video_name} with any suffix.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from ma2mba.annotations.conversation import whole_medium
from ma2mba.annotations.fields import RecordError, need, need_number, need_text
from ma2mba.annotations.files import Files, Table, json_list
from ma2mba.annotations.media import MediaFolder
from ma2mba.annotations.records import BadRecord, Record, each, records_in, try_parse
from ma2mba.errors import UserError

Placed = tuple[str, Any]
"""(place of the record, JSON value)."""


@dataclass(frozen=True)
class ActivityNetRecord(Record):
    """A question joined with its answer. `type` is the published number of the kind of question."""

    question_id: str
    question: str
    answer: str
    type: int


def read(files: Files, media: Path) -> Iterator[ActivityNetRecord | BadRecord]:
    """Yield each question with its answer. A question without an answer, or an answer without one, is a bad record."""
    if not any(isinstance(file, Path) or _kind(name, file) in ("_q", "_a") for name, file in files):
        yield from each(json_list, _parse_joined)(files, media)
        return
    questions, given = _by_kind(files)
    answers: dict[str, Placed] = {}
    for where, value in given:
        try:
            key = need(value, "question_id", str)
            if key in answers:
                raise RecordError(f"question {key} is answered already in {answers[key][0]}")
            answers[key] = where, value
        except RecordError as error:
            yield BadRecord.of(value, where, str(error))
    asked = set[str]()

    def parse(value: Any, folder: MediaFolder, where: str) -> ActivityNetRecord:
        key = need(value, "question_id", str)
        whole_medium(value)
        if key in asked:
            raise RecordError(f"question {key} appears twice")
        asked.add(key)
        name = folder.find(f"v_{need_text(value, 'video_name')}")
        if key not in answers:
            raise RecordError(f"question {key} has no answer in any _a.json")
        return ActivityNetRecord(where, name, key, need_text(value, "question"), *_answer(*answers[key]))

    folder = MediaFolder(media)
    for where, value in questions:
        yield try_parse(parse, value, folder, where)
    for key, (where, value) in answers.items():
        if key not in asked:
            yield BadRecord.of(value, where, f"question {key} is in no _q.json")


def _parse_joined(value: Any, folder: MediaFolder, where: str) -> ActivityNetRecord:
    """Return the record of a row that holds a question and its answer. Raise RecordError when it breaks the format."""
    whole_medium(value)
    key, name = need(value, "question_id", str), folder.find(f"v_{need_text(value, 'video_name')}")
    question, answer = need_text(value, "question"), need_text(value, "answer")
    return ActivityNetRecord(where, name, key, question, answer, need_number(value, "type", 1 << 31))


def _kind(name: str, file: Path | Table) -> str:
    """Return "_q" for a file of questions and "_a" for a file of answers; other files end in something else."""
    return (file if isinstance(file, Path) else PurePath(name)).stem[-2:]


def _by_kind(files: Files) -> tuple[list[Placed], list[Placed]]:
    """Return the questions and the answers, each with its place. Raise UserError unless both kinds of files exist."""
    kinds: dict[str, list[Placed]] = {"_q": [], "_a": []}
    suffixes = [_kind(name, file) for name, file in files]
    if set(suffixes) != {"_q", "_a"}:
        names = ", ".join(name for name, _ in files)
        raise UserError(f"{names}: activitynet_qa needs files of both kinds, *_q.json and *_a.json, and no other files")
    for (name, file), kind in zip(files, suffixes, strict=True):
        kinds[kind] += [(f"{name} {where}", value) for where, value in records_in(file, json_list)]
    return kinds["_q"], kinds["_a"]


def _answer(where: str, value: Any) -> tuple[str, int]:
    """Return an answer and its type. Raise RecordError, for the record of the question, when the answer is bad."""
    try:
        kind = need(value, "type", int)
        return need_text(value, "answer"), kind
    except RecordError as error:
        raise RecordError(f"its answer ({where}) {error}") from error

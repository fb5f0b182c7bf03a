"""MLVU: json/<n>_<task>.json, a list of {video, question, candidates, answer, question_type}.

A table on the hub has the same as {video_name, question, candidates, answer, task_type}; the answer is a letter there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ma2mba.annotations.choices import need_answer, need_options, split_options
from ma2mba.annotations.fields import RecordError, need_text
from ma2mba.annotations.files import json_records
from ma2mba.annotations.media import MediaFolder
from ma2mba.annotations.records import Record, each


@dataclass(frozen=True)
class MLVURecord(Record):
    """A question. `media` is the video, below its task's folder. `answer` is the index of the right candidate.

    `flaw`: why the published question has no right answer; "" for all but three.
    """

    id: str
    task: str
    question: str
    candidates: tuple[str, ...]
    answer: int
    flaw: str = ""


FLAWS = {
    ("needle_4.mp4", "Catching a flying drone quadcopter"): "its answer is not among its candidates",
    ("needle_5.mp4", "Catching a flying drone quadcopter"): "its answer is not among its candidates",
    ("movie101_89.mp4", ""): "its question and candidates are empty",
}
"""(video, answer) of published questions that cannot be answered."""


def _parse(value: Any, folder: MediaFolder, where: str) -> MLVURecord:
    media = folder.inside(_either(value, "video", "video_name"))
    task = _either(value, "question_type", "task_type")
    number = value["question_id"] if isinstance(value.get("question_id"), str) else ""
    if flaw := FLAWS.get((media, str(value.get("answer")))):
        return MLVURecord(where, media, number, task, "", (), 0, flaw)
    question = need_text(value, "question")
    if "candidates" in value:
        candidates = need_options(value, "candidates")
        question = _without(question, candidates)
    else:
        question, candidates = split_options(question)
        if not candidates:
            raise RecordError("has no candidates, and its question holds none")
    return MLVURecord(where, media, number, task, question, candidates, need_answer(value, "answer", candidates))


def _without(question: str, candidates: Sequence[str]) -> str:
    """Return a question without the candidates, which tables on the hub repeat in it."""
    bare, repeated = split_options(question)
    return bare if repeated == tuple(candidates) else question


def _either(value: Any, key: str, other: str) -> str:
    return need_text(value, other if isinstance(value, dict) and key not in value and other in value else key)


read = each(json_records, _parse)

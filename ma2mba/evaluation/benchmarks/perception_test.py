"""Perception Test: multiple-choice questions with three options about videos filmed for it.

The authors publish no prompt. The wording is that of lmms-eval's task `perceptiontest_val_mc`.
"""

from collections.abc import Iterator
from pathlib import Path

from ma2mba.annotations import perception_test
from ma2mba.annotations.files import Files
from ma2mba.annotations.perception_test import PerceptionRecord
from ma2mba.annotations.records import BadRecord
from ma2mba.evaluation.benchmarks.base import Benchmark, Source, lettered
from ma2mba.evaluation.items import Item

LAYOUT = {
    "valid": (
        *("mc_question_valid.json", "*/mc_question_valid.json", "all_valid.json", "*/all_valid.json", "*valid*.json"),
        *("validation-*.parquet", "*/validation-*.parquet", "*/*.parquet", "*.parquet"),
    ),
    "train": ("mc_question_train.json", "*/mc_question_train.json", "all_train.json", "*/all_train.json"),
}
PLACES = ("videos", "video", "valid", "")
CHOOSE = "Answer with the option's letter from the given choices directly."


def items(source: Source) -> Iterator[Item]:
    """Make the questions, video by video. Task: area, as in "physics"."""
    for record in source.records(_read):
        yield Item(
            id=f"{record.video_id}-{record.id}",
            medium=source.video(record.where, [record.media], PLACES),
            question=record.question,
            options=record.options,
            gold=record.options[record.answer_id],
            gold_index=record.answer_id,
            task=record.area or "all",
            prompt=f"{record.question}\n{lettered(record.options)}\n{CHOOSE}",
        )


def _read(files: Files, media: Path) -> Iterator[PerceptionRecord | BadRecord]:
    """Yield the questions. all_valid.json also lists videos without any, for other tasks."""
    for record in perception_test.read(files, media):
        if not (isinstance(record, BadRecord) and record.reason in ("has no mc_question", "mc_question is empty")):
            yield record


BENCHMARK = Benchmark("perception-test", "Perception Test", LAYOUT, items)

"""MLVU: the seven multiple-choice tasks of the development set, about videos of 3 minutes to 2 hours.

The prompt is from the authors' code (github.com/JUNJIE99/MLVU, evaluation/multiple_choice_evaluation/choice_bench.py).
There the answer starts with "Best Option: ("; here the model writes the whole answer. The two tasks whose answers are
texts need a judge and are left out.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from ma2mba.annotations import mlvu
from ma2mba.evaluation.benchmarks.base import Benchmark, Source, lettered
from ma2mba.evaluation.items import Item

log = logging.getLogger(__name__)
LAYOUT = {
    "dev": (
        *("json/[1-7]_*.json", "MLVU/json/[1-7]_*.json", "data/[1-7]_*.json", "[1-7]_*.json", "json/*.json"),
        *("*/*.parquet", "*.parquet", "*.jsonl", "*.json"),
    ),
    "test": ("test-ground-truth/test_mcq_gt.json", "test_mcq_gt.json"),
}
FOLDERS = {
    "plotQA": "1_plotQA",
    "findNeedle": "2_needle",
    "needle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}
"""question_type -> the folder of its videos."""
SYSTEM = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question."
)
ONLY = "Only give the best option."


def items(source: Source) -> Iterator[Item]:
    """Make the questions, file by file. Task: question_type. Published questions without a right answer are skipped."""
    for number, record in enumerate(source.records(mlvu.read), 1):
        if record.flaw:
            log.warning("%s is skipped: as published, %s", record.where, record.flaw)
            continue
        options = lettered(record.candidates, "({letter}) {text}")
        yield Item(
            id=record.id or f"{record.task}-{number}",
            medium=source.video(record.where, [record.media], _places(record.where, record.task)),
            question=record.question,
            options=record.candidates,
            gold=record.candidates[record.answer],
            gold_index=record.answer,
            task=record.task,
            prompt=f"{SYSTEM}\nQuestion: {record.question}\nOptions:\n{options}\n{ONLY}",
        )


def _places(where: str, kind: str) -> list[str]:
    """Return the folders of a task's videos: the one named as its file (json/1_plotQA.json), the published one, others.

    The tables on the hub hold all tasks in one file.
    """
    stem = Path(where.partition(".json")[0]).name if ".json" in where else ""
    task = stem.partition("_")[2] if stem[:1].isdigit() else stem
    names = dict.fromkeys((stem, FOLDERS.get(kind, ""), task, kind, ""))
    return [str(Path(root, name)) for root in ("video", "MLVU/video", "videos", "") for name in names]


BENCHMARK = Benchmark("mlvu", "MLVU", LAYOUT, items, mean_over_tasks=True)

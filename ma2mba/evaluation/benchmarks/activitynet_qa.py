"""ActivityNet-QA: short questions about videos of human activities, with open answers.

The request after the question is the one of lmms-eval's task `activitynetqa`. The published results of video-language
models are a language model's judgement; the score here counts answers that have the words of the right one.
"""

from collections.abc import Iterator

from ma2mba.annotations import activitynet_qa
from ma2mba.evaluation.benchmarks.base import Benchmark, Source
from ma2mba.evaluation.items import Item

LAYOUT = {
    split: (f"{split}_[qa].json", f"*/{split}_[qa].json", f"{long}-*.parquet", f"*/{long}-*.parquet")
    for split, long in (("test", "test"), ("val", "validation"), ("train", "train"))
}
PLACES = ("all_test", "videos", "video", "")
ASK = "Answer the question using a single word or phrase."
TASKS = ("motion", "spatial relation", "temporal relation", "yes/no", "color", "object", "location", "number", "other")
"""The kinds of questions, by their published numbers."""


def items(source: Source) -> Iterator[Item]:
    """Make the questions, in the order of the file. Task: the kind of the question."""
    for record in source.records(activitynet_qa.read):
        question = f"{record.question[:1].upper()}{record.question[1:].rstrip('?').rstrip()}?"
        yield Item(
            id=record.question_id,
            medium=source.video(record.where, [record.media], PLACES),
            question=question,
            gold=record.answer,
            task=TASKS[record.type] if 0 <= record.type < len(TASKS) else str(record.type),
            prompt=f"{question} {ASK}",
        )


BENCHMARK = Benchmark("activitynet-qa", "ActivityNet-QA", LAYOUT, items, open_ended=True)

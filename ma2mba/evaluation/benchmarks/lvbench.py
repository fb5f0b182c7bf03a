"""LVBench: 1,549 questions about 103 videos of 30 minutes to 2 hours, with four options each.

The published question holds its options, each on a line "(A) ...". The authors publish no request for the letter; the
request here is the one that lmms-eval's task uses.
"""

from collections.abc import Iterator

from ma2mba.annotations import lvbench
from ma2mba.evaluation.benchmarks.base import Benchmark, Source, lettered
from ma2mba.evaluation.items import Item

LAYOUT = {
    "test": (
        *("video_info.meta.jsonl", "data/video_info.meta.jsonl", "*.meta.jsonl"),
        *("data/*.parquet", "*/*.parquet", "*.parquet", "*.jsonl", "*.json"),
    )
}
PLACES = ("all_videos", "videos", "video", "data", "")
ASK = "Answer the question with the option letter"


def items(source: Source) -> Iterator[Item]:
    """Make the questions, video by video. Task: the first question_type, of which a question may have several."""
    for number, record in enumerate(source.records(lvbench.read), 1):
        options = lettered(record.options, "({letter}) {text}")
        yield Item(
            id=record.uid or str(number),
            medium=source.video(record.where, [record.media], PLACES),
            question=record.question,
            options=record.options,
            gold=record.options[record.answer],
            gold_index=record.answer,
            task=record.question_type[0] if record.question_type else "all",
            prompt=f"{record.question}\n{options}\n{ASK}",
        )


BENCHMARK = Benchmark("lvbench", "LVBench", LAYOUT, items)

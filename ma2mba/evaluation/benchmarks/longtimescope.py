"""LongTimeScope: questions about short clips hidden in videos of 1 minute to 8 hours.

The published field `input` is the whole prompt, and is asked as it is.
"""

from collections.abc import Iterator

from ma2mba.annotations import longtimescope
from ma2mba.evaluation.benchmarks.base import Benchmark, Source, lettered
from ma2mba.evaluation.items import Item

LAYOUT = {"test": ("data/*.parquet", "test-*.parquet", "*/*.parquet", "*.parquet", "*.jsonl", "*.json")}
PLACES = ("", "videos", "video", "data")
CHOOSE = "Answer with the option's letter from the given choices directly."


def items(source: Source) -> Iterator[Item]:
    """Make the questions, in the order of the files. Task: type (QA, OCR, temporal); duration group: length in s."""
    for number, record in enumerate(source.records(longtimescope.read), 1):
        choice = record.answer if isinstance(record.answer, int) else None
        listed = choice is None or record.question != record.input
        yield Item(
            id=f"{record.type}-{record.length}-{record.id or number}",
            medium=source.video(record.where, [record.media], PLACES),
            question=record.question,
            options=record.options,
            gold=str(record.answer) if choice is None else record.options[choice],
            gold_index=choice,
            task=record.type,
            duration_group=record.length,
            prompt=record.input if listed else f"{record.input}\n{lettered(record.options)}\n{CHOOSE}",
        )


BENCHMARK = Benchmark("longtimescope", "LongTimeScope", LAYOUT, items)

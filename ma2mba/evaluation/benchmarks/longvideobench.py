"""LongVideoBench: 1,337 validation questions about videos of 8 s to 1 hour, with four or five options each.

The prompt is from the authors' data loader (github.com/longvideobench/LongVideoBench, longvideobench_dataset.py). They
put subtitles between the frames; here they stand before the question, as in their setting without frames.
"""

from collections.abc import Iterator
from typing import Any

from ma2mba.annotations import longvideobench
from ma2mba.errors import UserError
from ma2mba.evaluation.benchmarks.base import Benchmark, Source, lettered
from ma2mba.evaluation.items import Item
from ma2mba.files import inside
from ma2mba.text import read_json

LAYOUT = {
    "val": ("lvb_val.json", "validation-*.parquet", "*/validation-*.parquet", "*.parquet", "*.jsonl", "*.json"),
    "test": ("lvb_test.json", "test-*.parquet", "*/test-*.parquet"),
}
PLACES = ("videos", "video", "")
CHOOSE = "Answer with the option's letter from the given choices directly."


def items(source: Source) -> Iterator[Item]:
    """Make the questions, in the order of the file. Task: question_category; duration group: 15, 60, 600 or 3600 s."""
    for record in source.records(longvideobench.read):
        subtitles = _subtitles(source, record) if source.subtitles else ""
        prompt = f"Question: {record.question}\n{lettered(record.options)}\n{CHOOSE}"
        yield Item(
            id=record.id,
            medium=source.video(record.where, [record.media], PLACES),
            question=record.question,
            options=record.options,
            gold=record.options[record.answer],
            gold_index=record.answer,
            task=record.question_category,
            duration_group=record.duration_group,
            subtitles=subtitles,
            prompt=f"{subtitles}\n{prompt}" if subtitles else prompt,
        )


def _subtitles(source: Source, record: longvideobench.LongVideoBenchRecord) -> str:
    """Return the lines of subtitles/{subtitle_path} that are spoken in the video; "" for a video without subtitles.

    The subtitles may be those of a longer film, in which the video begins at `starting_timestamp`.
    """
    path = inside(source.media, f"subtitles/{record.subtitle_path}", record.where)
    if not record.subtitle_path or not path.is_file():
        return ""
    try:
        lines = [(*_span(line, record.duration), _text(line)) for line in read_json(path)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a list of subtitles ({error!r:.200}). Get the file again") from error
    begin, end = record.starting_timestamp, record.starting_timestamp + (record.duration or float("inf"))
    return "\n".join(text for first, last, text in lines if last > begin and first < end and text)


def _span(line: Any, duration: float) -> tuple[float, float]:
    """Return when a line is spoken: {timestamp: [start, end]}, or {start: "h:mm:ss.s", end}."""
    if "timestamp" in line:
        start, end = line["timestamp"]
        return float(start), float(end) if isinstance(end, int | float) else duration
    return _seconds(line["start"]), _seconds(line["end"])


def _seconds(clock: str) -> float:
    hours, minutes, seconds = clock.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _text(line: Any) -> str:
    text = line["text"] if "timestamp" in line else line["line"]
    return " ".join(text.split())


BENCHMARK = Benchmark("longvideobench", "LongVideoBench", LAYOUT, items, subtitles=("subtitles/*.json",))

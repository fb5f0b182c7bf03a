"""LongVideoBench: 1,337 validation questions about videos of 8 s to 1 hour, with four or five options each.

The prompt is from the authors' data loader (github.com/longvideobench/LongVideoBench, longvideobench_dataset.py). As
there, only the subtitles that are spoken at the sampled frames are given. The loader puts them between the frames; here
they stand before the question.
"""

import os
from collections.abc import Iterator
from typing import Any

from ma2mba.annotations import longvideobench
from ma2mba.errors import UserError
from ma2mba.evaluation.benchmarks.base import Benchmark, Source, lettered
from ma2mba.evaluation.items import Item, Line
from ma2mba.files import fits_utf8, inside
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
        yield Item(
            id=record.id,
            medium=source.video(record.where, [record.media], PLACES),
            question=record.question,
            options=record.options,
            gold=record.options[record.answer],
            gold_index=record.answer,
            task=record.question_category,
            duration_group=record.duration_group,
            subtitles=_subtitles(source, record) if source.subtitles else (),
            prompt=f"Question: {record.question}\n{lettered(record.options)}\n{CHOOSE}",
        )


def _subtitles(source: Source, record: longvideobench.LongVideoBenchRecord) -> tuple[Line, ...]:
    """Return the lines of subtitles/{subtitle_path} that are spoken in the video; () for a video without subtitles.

    The subtitles may be those of a longer film, in which the video begins at `starting_timestamp`.
    """
    path = inside(source.media, f"subtitles/{record.subtitle_path}", record.where)
    if not record.subtitle_path or not os.path.isfile(path):
        return ()
    try:
        lines = [_line(line, record) for line in read_json(path)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a list of subtitles ({error!r:.200}). Get the file again") from error
    return tuple(
        line for line in lines if line.end > 0 and line.text and line.start < (record.duration or float("inf"))
    )


def _line(line: Any, record: longvideobench.LongVideoBenchRecord) -> Line:
    """Return a line {timestamp: [start, end], text}, or {start: "h:mm:ss.s", end, line}, in seconds of the video.

    As in the loader, a line that is spoken for less than a second counts as one second around its middle.
    """
    if "timestamp" in line:
        start, end = line["timestamp"]
        text, start = line["text"], float(start)
        end = float(end) if isinstance(end, int | float) else record.duration
    else:
        text, start, end = line["line"], _seconds(line["start"]), _seconds(line["end"])
    start, end = start - record.starting_timestamp, end - record.starting_timestamp
    if end - start < 1:
        start, end = (start + end - 1) / 2, (start + end + 1) / 2
    if not fits_utf8(text):
        raise ValueError("contains an unpaired surrogate")
    return Line(start, end, " ".join(text.split()))


def _seconds(clock: str) -> float:
    hours, minutes, seconds = clock.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


BENCHMARK = Benchmark("longvideobench", "LongVideoBench", LAYOUT, items, subtitles=("subtitles/*.json",))

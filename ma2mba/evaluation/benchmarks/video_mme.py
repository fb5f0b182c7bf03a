"""Video-MME: 2,700 questions about 900 videos of 11 s to 1 hour, with four options each.

Prompts are from the authors' README (github.com/MME-Benchmarks/Video-MME, "Evaluation Pipeline"). As it says there,
only the subtitles that are spoken at the sampled frames are given.
"""

import os
import re
from collections.abc import Iterator

from ma2mba.annotations import video_mme
from ma2mba.evaluation.benchmarks.base import Benchmark, Source, lettered
from ma2mba.evaluation.items import Item, Line
from ma2mba.files import inside, read_bounded
from ma2mba.text import JSON_BYTES

LAYOUT = {"test": ("videomme/test-*.parquet", "test-*.parquet", "*/*.parquet", "*.parquet", "*.jsonl", "*.json")}
PLACES = ("data", "videos", "video", "videos/data", "")
SELECT = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option."
)
SUBTITLES = "This video's subtitles are listed below:"
_TIMES = re.compile(r"(\d{1,3}):(\d\d):(\d\d[,.]\d+)\s*-->\s*(\d{1,3}):(\d\d):(\d\d[,.]\d+)")
_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")


def items(source: Source) -> Iterator[Item]:
    """Make the questions, in the order of the file. Task: task_type; duration group: short, medium or long."""
    subtitles: dict[str, tuple[Line, ...]] = {}
    for record in source.records(video_mme.read):
        if source.subtitles and record.media not in subtitles:
            subtitles[record.media] = _subtitles(source, record.media, record.where)
        yield Item(
            id=record.question_id,
            medium=source.video(record.where, [record.media], PLACES),
            question=record.question,
            options=record.options,
            gold=record.options[record.answer],
            gold_index=record.answer,
            task=record.task_type,
            duration_group=record.duration,
            subtitles=subtitles.get(record.media, ()),
            before_subtitles=SUBTITLES,
            prompt=f"{SELECT}\n{record.question}\n{lettered(record.options)}\nThe best answer is:",
        )


def _subtitles(source: Source, video: str, where: str) -> tuple[Line, ...]:
    """Return the lines of subtitle/{videoID}.srt; () for a video without, as the authors ask about it without."""
    for place in ("subtitle", "subtitles"):
        path = inside(source.media, f"{place}/{video}.srt", where)
        if os.path.isfile(path):
            return srt_lines(read_bounded(path, JSON_BYTES).decode("utf-8-sig", errors="replace"))
    return ()


def srt_lines(content: str) -> tuple[Line, ...]:
    """Return the lines of an .srt file, without numbers and markup. Text before the first times is left out."""
    rows = [row.strip() for row in content.splitlines()]
    marks = [(i, match) for i, row in enumerate(rows) if (match := _TIMES.match(row))]
    starts = [i - 1 if rows[i - 1].isdigit() else i for i, _ in marks]
    lines = []
    for (i, match), end in zip(marks, [*starts[1:], len(rows)], strict=False):
        text = " ".join(filter(None, (_MARKUP.sub("", row).strip() for row in rows[i + 1 : end])))
        if text:
            lines.append(Line(_seconds(*match.group(1, 2, 3)), _seconds(*match.group(4, 5, 6)), text))
    return tuple(lines)


def _seconds(hours: str, minutes: str, seconds: str) -> float:
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))


BENCHMARK = Benchmark("video-mme", "Video-MME", LAYOUT, items, subtitles=("subtitle/*.srt", "subtitles/*.srt"))

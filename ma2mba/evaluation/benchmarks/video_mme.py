"""Video-MME: 2,700 questions about 900 videos of 11 s to 1 hour, with four options each.

Prompts are from the authors' README (github.com/MME-Benchmarks/Video-MME, "Evaluation Pipeline"). With subtitles, all
lines of a video's file are given, whichever of its frames are sampled.
"""

import re
from collections.abc import Iterator

from ma2mba.annotations import video_mme
from ma2mba.evaluation.benchmarks.base import Benchmark, Source, lettered
from ma2mba.evaluation.items import Item
from ma2mba.files import inside, read_bounded
from ma2mba.text import JSON_BYTES

LAYOUT = {"test": ("videomme/test-*.parquet", "test-*.parquet", "*/*.parquet", "*.parquet", "*.jsonl", "*.json")}
PLACES = ("data", "videos", "video", "videos/data", "")
SELECT = (
    "Select the best answer to the following multiple-choice question based on the video{also}. Respond with only the "
    "letter (A, B, C, or D) of the correct option."
)
SUBTITLES = "This video's subtitles are listed below:"
_TIME = re.compile(r"^\d+:\d\d:\d\d[,.]\d+\s*-->.*$")
_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")


def items(source: Source) -> Iterator[Item]:
    """Make the questions, in the order of the file. Task: task_type; duration group: short, medium or long."""
    for record in source.records(video_mme.read):
        subtitles = _subtitles(source, record.media, record.where) if source.subtitles else ""
        ask = f"{record.question}\n{lettered(record.options)}\nThe best answer is:"
        prompt = f"{SELECT.format(also=' and the subtitles' if subtitles else '')}\n{ask}"
        yield Item(
            id=record.question_id,
            medium=source.video(record.where, [record.media], PLACES),
            question=record.question,
            options=record.options,
            gold=record.options[record.answer],
            gold_index=record.answer,
            task=record.task_type,
            duration_group=record.duration,
            subtitles=subtitles,
            prompt=f"{SUBTITLES}\n{subtitles}\n{prompt}" if subtitles else prompt,
        )


def _subtitles(source: Source, video: str, where: str) -> str:
    """Return the lines of subtitle/{videoID}.srt; "" for a video without, as the authors ask about it without."""
    for place in ("subtitle", "subtitles"):
        path = inside(source.media, f"{place}/{video}.srt", where)
        if path.is_file():
            return srt_text(read_bounded(path, JSON_BYTES).decode("utf-8-sig", errors="replace"))
    return ""


def srt_text(content: str) -> str:
    """Return the spoken lines of an .srt file, without numbers, times and markup."""
    lines = content.replace("\r\n", "\n").split("\n")
    spoken = []
    for i, line in enumerate(lines):
        number = line.strip().isdigit() and i + 1 < len(lines) and _TIME.match(lines[i + 1].strip())
        text = "" if number or _TIME.match(line.strip()) else _MARKUP.sub("", line).strip()
        if text:
            spoken.append(text)
    return "\n".join(spoken)


BENCHMARK = Benchmark("video-mme", "Video-MME", LAYOUT, items, subtitles=("subtitle/*.srt", "subtitles/*.srt"))

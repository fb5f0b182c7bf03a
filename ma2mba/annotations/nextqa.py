"""NExT-QA: CSV rows of one question each; `answer` is the index of the right option a0..a4 (MC) or a text (OE).

Without map_vid_vidorID.json the video's file is {video}.*; with this file among the annotations it is {mapped path}.*
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ma2mba.annotations.conversation import whole_medium
from ma2mba.annotations.csv_files import csv_rows
from ma2mba.annotations.fields import RecordError, as_texts, need_number, need_text
from ma2mba.annotations.files import Files
from ma2mba.annotations.media import MediaFolder
from ma2mba.annotations.records import BadRecord, Parse, Reader, Record, each
from ma2mba.errors import UserError
from ma2mba.text import read_json

COLUMNS = ("video", "frame_count", "width", "height", "question", "answer", "qid", "type")
OPTIONS = ("a0", "a1", "a2", "a3", "a4")
T = TypeVar("T")


@dataclass(frozen=True)
class NextQARecord(Record):
    """The fields of both kinds of questions. `type` is the kind of reasoning, as in "CW" (causal, why)."""

    video: str
    qid: str
    type: str
    question: str


@dataclass(frozen=True)
class NextMCRecord(NextQARecord):
    """`answer` is the index of the right option."""

    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class NextOERecord(NextQARecord):
    answer: str


def _mc(value: Any, where: str, media: str) -> NextMCRecord:
    options = tuple(need_text(value, key) for key in OPTIONS)
    question, answer = need_text(value, "question"), need_number(value, "answer", len(options))
    return NextMCRecord(where, media, *_ids(value), question, options, answer)


def _oe(value: Any, where: str, media: str) -> NextOERecord:
    question, answer = need_text(value, "question"), need_text(value, "answer")
    return NextOERecord(where, media, *_ids(value), question, answer)


def _ids(value: Any) -> tuple[str, str, str]:
    return need_text(value, "video"), need_text(value, "qid"), value.get("type", "")


def _reader(columns: tuple[str, ...], question: Callable[[Any, str, str], T]) -> Reader[T | BadRecord]:
    def read(files: Files, media: Path) -> Iterator[T | BadRecord]:
        maps = [file for _, file in files if isinstance(file, Path) and file.suffix == ".json"]
        tables: Files = [(name, file) for name, file in files if file not in maps]
        return each(csv_rows(*columns), _parse(_video_paths(maps), question), columns)(tables, media)

    return read


def _parse(paths: dict[str, str], question: Callable[[Any, str, str], T]) -> Parse[T]:
    def parse(value: Any, folder: MediaFolder, where: str) -> T:
        value = as_texts(value)
        whole_medium(value)
        video, _, _ = _ids(value)
        if paths and video not in paths:
            raise RecordError(f"video {video} is not in the map of videos")
        return question(value, where, folder.find(paths.get(video, video)))

    return parse


def _video_paths(files: list[Path]) -> dict[str, str]:
    """Return the path of each video below the media folder, without its suffix. Raise UserError for another file."""
    paths: dict[str, str] = {}
    for file in files:
        content = read_json(file)
        if not isinstance(content, dict) or not all(isinstance(path, str) for path in content.values()):
            raise UserError(f"{file}: not a JSON object of video: path. List map_vid_vidorID.json here.")
        paths |= content
    return paths


read_mc = _reader((*COLUMNS, *OPTIONS), _mc)
read_oe = _reader(COLUMNS, _oe)

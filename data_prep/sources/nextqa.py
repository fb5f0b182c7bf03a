"""NExT-QA: CSV rows of a question; `answer` is the number of the right one of a0..a4 (MC) or text (OE).

map_vid_vidorID.json, listed among the annotations, gives each video its path ("0101/2909445186").
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_prep.clips import Clip, RecordError, Reject
from data_prep.sources.records import Files, VideoFinder, attempt, csv_rows, need_number, need_text
from data_prep.sources.wording import multiple_choice, open_question
from ma2mba.errors import UserError
from ma2mba.files import reading
from ma2mba.model.conversation import Turn

COLUMNS = ("video", "frame_count", "width", "height", "question", "answer", "qid", "type")
OPTIONS = ("a0", "a1", "a2", "a3", "a4")


def _choice(record: Any) -> tuple[Turn, ...]:
    options = [need_text(record, key) for key in OPTIONS]
    return multiple_choice(need_text(record, "question"), options, need_number(record, "answer", len(options)))


def _open(record: Any) -> tuple[Turn, ...]:
    return open_question(need_text(record, "question"), need_text(record, "answer"))


def _reader(turns_of: Callable[[Any], tuple[Turn, ...]], columns: tuple[str, ...]):
    def read(files: Files, media: Path) -> Iterator[Clip | Reject]:
        paths = _video_paths([path for _, path in files if path.suffix == ".json"])
        finder = VideoFinder(media)

        def read_row(record: Any, media: Path, where: str) -> Clip:
            video, qid = need_text(record, "video"), need_text(record, "qid")
            if paths and video not in paths:
                raise RecordError(f"video {video} is not in the map of videos")
            name = finder.name(paths.get(video, video))
            return Clip(f"{video}-{qid}", media / name, name, False, turns_of(record), (), where)

        for name, path in files:
            if path.suffix != ".json":
                for where, record in csv_rows(*columns)(path):
                    yield attempt(read_row, record, media, f"{name} {where}")

    return read


def _video_paths(files: list[Path]) -> dict[str, str]:
    paths: dict[str, str] = {}
    for file in files:
        try:
            with reading(file):
                content = file.read_bytes()
            paths |= {str(key): str(value) for key, value in json.loads(content).items()}
        except (ValueError, AttributeError) as error:
            raise UserError(f"{file}: not a JSON object of video: path ({error}); name map_vid_vidorID.json") from error
    return paths


read_choices = _reader(_choice, (*COLUMNS, *OPTIONS))
read_open = _reader(_open, COLUMNS)

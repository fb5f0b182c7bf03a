"""Questions about videos, read from a JSONL file with one object a line."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ValidationError

from ma2mba.errors import UserError
from ma2mba.files import fits_utf8


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank")
    if not fits_utf8(text):
        raise ValueError("contains an unpaired surrogate")
    return text


_Text = Annotated[str, AfterValidator(_said)]


class _Line(BaseModel):
    id: str
    video: _Text
    question: _Text
    answer: _Text
    options: list[str] = []
    task: str = "all"


@dataclass(frozen=True)
class Question:
    """A question. `options` is empty for an open question; `video` counts from the task file's folder."""

    id: str
    video: Path
    question: str
    answer: str
    options: tuple[str, ...]
    task: str

    @property
    def chance(self) -> float:
        """Return the probability that a guess among the options is right, 0 for an open question."""
        return 1 / len(self.options) if self.options else 0.0


def read_tasks(path: Path | str, *, task: str | None = None, limit: int | None = None) -> list[Question]:
    """Return the questions of a task file: only those of `task` if given, and only the first `limit`.

    Raises UserError for an unreadable file, a malformed line or a missing video (with its line), and if no question is
    left.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: this task file does not exist. Give a JSONL file of questions")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Make it readable, or give another task file"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}). Save it as UTF-8") from error
    found = [_question(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    chosen = [q for q in found if task in (None, q.task)][:limit]
    if not chosen:
        tasks = ", ".join(sorted({q.task for q in found})) or "none"
        raise UserError(f"{path}: no question{f' of task {task}' if task else ''}. Its tasks are: {tasks}")
    return chosen


def _question(path: Path, number: int, text: str) -> Question:
    try:
        line = _Line.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: not JSON ({error.msg}). Write one object a line") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "line"
        raise UserError(f"{path}, line {number}: {where}: {first['msg']}. Correct this line") from error
    if line.options and line.answer not in line.options:
        raise UserError(f"{path}, line {number}: answer {line.answer!r} is not among its options. Correct this line")
    video = path.parent / line.video
    if not video.is_file():
        raise UserError(
            f"{path}, line {number}: video {video} does not exist. A path in a task file counts from that file's folder"
        )
    return Question(line.id, video, line.question, line.answer, tuple(line.options), line.task)

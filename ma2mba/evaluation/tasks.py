"""Questions about videos, read from a JSONL file with one object a line."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ValidationError

from ma2mba.annotations.choices import LETTERS, choice_prompt
from ma2mba.errors import UserError
from ma2mba.evaluation.items import Item
from ma2mba.evaluation.parsing import find_gold
from ma2mba.files import OutsideFolder, fits_utf8, inside, name_problem, open_regular
from ma2mba.limits import limits, raise_limit
from ma2mba.text import LISTED, brief, parse_json, shorten
from ma2mba.video.errors import MediaError, file_size

L = TypeVar("L", bound=BaseModel)
LINES_OF_ALL = 2
"""How many times the bytes of the largest accepted line a task file may hold."""


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank")
    if not fits_utf8(text):
        raise ValueError("contains an unpaired surrogate")
    return text


def _asked(text: str) -> str:
    if len(text.encode(errors="replace")) > limits().question_kb * 1e3:
        raise ValueError(f"longer than {limits().question_kb:g} KB. {raise_limit('question_kb')}")
    return _said(text)


def _name(text: str) -> str:
    if text and name_problem(text) in ("contains control characters", "is not valid Unicode"):
        raise ValueError(name_problem(text))
    return text


Text = Annotated[str, AfterValidator(_said)]
AskedText = Annotated[str, AfterValidator(_asked)]
Name = Annotated[str, AfterValidator(_name)]


class _Line(BaseModel):
    id: Name
    video: str
    question: AskedText
    answer: Text
    options: list[Text] = []
    show_options: bool = True
    task: Name = "all"


@dataclass(frozen=True, slots=True)
class Question:
    """A question. `options` is empty for an open question; unless they are `shown`, they give its chance alone."""

    id: str
    video: Path
    question: str
    answer: str
    options: tuple[str, ...]
    task: str
    shown: bool = True

    @property
    def chance(self) -> float:
        """Return the probability that a guess among the options is right, 0 for an open question."""
        return 1 / len(self.options) if self.options else 0.0

    @property
    def item(self) -> Item:
        """The question as the model is asked: its options follow it, worded as in LLaVA-Video-178K."""
        chosen = find_gold(self.answer, self.options) if self.options and self.shown else None
        return Item(
            id=self.id,
            medium=self.video,
            question=self.question,
            gold=self.answer if chosen is None else self.options[chosen],
            prompt=self.question if chosen is None else choice_prompt(self.question, self.options),
            options=self.options,
            gold_index=chosen,
            shown=self.shown,
            task=self.task,
        )


def read_tasks(
    path: Path | str, *, media: Path | str | None = None, task: str | None = None, limit: int | None = None
) -> list[Question]:
    """Return the questions of a task file: only those of `task` if given, and only the first `limit`.

    `media` is the folder that the videos' names count from (default: the task file's folder). Raises UserError for an
    unreadable file, a file over a limit, a malformed line or a video that is missing or outside `media` (with its
    line), and if no question is left.
    """
    path = Path(path)
    require_files(path, media)
    find = cache(lambda name: _video(Path(media or path.parent), name, path))
    chosen: list[Question] = []
    tasks = set()
    for number, text in lines_of(path):
        question = _question(f"{path}, line {number}", text, find)
        tasks.add(question.task)
        if task in (None, question.task) and (limit is None or len(chosen) < limit):
            chosen.append(question)
    if not chosen:
        names = ", ".join(sorted(tasks)[:LISTED]) or "none"
        raise UserError(f"{path}: no question{f' of task {task}' if task else ''}. Its tasks are: {names}")
    return chosen


def require_files(path: Path, media: Path | str | None) -> None:
    """Raise UserError if a file of questions, or the folder of their videos, does not exist."""
    if not os.path.lexists(path):
        raise UserError(f"{path}: this task file does not exist. Give a JSONL file of questions")
    if media is not None and not Path(media).is_dir():
        raise UserError(f"--media {media}: this folder does not exist. Give the folder of the videos")


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not blank. Raise UserError at a line that exceeds a limit."""
    longest = int(limits().text_mb * 1e6)
    left = LINES_OF_ALL * longest
    with open_regular(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(longest + 1), b""), 1):
            left -= len(line)
            if len(line) > longest:
                raise UserError(f"{path}, line {number}: longer than {longest:,} bytes. {raise_limit('text_mb')}")
            if left < 0:
                raise UserError(f"{path}: larger than {LINES_OF_ALL * longest:,} bytes. {raise_limit('text_mb')}")
            if number > limits().questions:
                raise UserError(f"{path}: more than {limits().questions:,} lines. {raise_limit('questions')}")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: not UTF-8 text (line {number}: {error}). Save it as UTF-8") from error
            if text.strip():
                yield number, text


def parse_line(where: str, text: str, kind: type[L]) -> L:
    """Return a line of a file of questions as `kind`. Raise UserError, with its place, for a malformed one."""
    try:
        return kind.model_validate(parse_json(text))
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}). Write one object a line") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"])) or "line"
        raise UserError(f"{where}: {key}: {first['msg']}. Correct this line") from error
    except ValueError as error:
        raise UserError(f"{where}: {shorten(str(error))}. Correct this line") from error


def leads_out(where: str, video: str, error: OutsideFolder) -> UserError:
    """Return the error for a video that is not in the folder of the videos."""
    return UserError(
        f"{where}: video {brief(video)} {error.reason}. Name a file in the task file's folder, or in the folder that "
        "--media names"
    )


def _question(where: str, text: str, find: Callable[[str], Path]) -> Question:
    line = parse_line(where, text, _Line)
    shown = line.show_options
    if shown and len(line.options) > len(LETTERS):
        raise UserError(
            f"{where}: {len(line.options)} options, and there are {len(LETTERS)} letters. Give fewer, or add "
            '"show_options": false'
        )
    named = find_gold(line.answer, line.options) is not None if shown else line.answer in line.options
    if line.options and not named:
        raise UserError(f"{where}: answer {brief(line.answer)} is not among its options. Correct this line")
    try:
        video = find(line.video)
    except OutsideFolder as error:
        raise leads_out(where, line.video, error) from error
    except MediaError as error:
        reason = " does not exist" if error.reason == "no such file" else f": {error.reason}"
        raise UserError(
            f"{where}: video {error.path}{reason}. A path in a task file counts from that file's folder, or from the "
            "folder that --media names"
        ) from error
    return Question(line.id, video, line.question, line.answer, tuple(line.options), line.task, shown)


def _video(folder: Path, name: str, listed_in: Path) -> Path:
    """Return the path of a video. Raise OutsideFolder or MediaError if it is not a file in `folder`."""
    video = inside(folder, name, listed_in)
    file_size(video)
    return video

"""The accuracy of a model on a task file."""

import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ma2mba.errors import UserError
from ma2mba.evaluation.metrics import is_correct, summarise
from ma2mba.evaluation.tasks import Question, read_tasks
from ma2mba.inference.chat import VideoChat, parse_frames
from ma2mba.model.pretrained import load_model
from ma2mba.model.video_ma2mba import VideoMa2mba

ANSWER_TOKENS = 32
Progress = Callable[[int, int], None]


def evaluate(
    model_dir: Path | str,
    task_file: Path | str,
    frames: str | int = "1fps",
    *,
    limit: int | None = None,
    task: str | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask every question of the file and compare answers by normalised exact match.

    Returns model, task_file, frames, n, accuracy, chance, tasks {name: {n, accuracy, chance}}, unreadable (the number
    of questions whose video could not be decoded; they count as wrong), seconds, and records (one a question).
    Calls `progress(done, total)` after every answer. Raises UserError for bad input.
    """
    count = parse_frames(str(frames))
    questions = read_tasks(task_file, task=task, limit=limit)
    model, tokenizer = load_model(model_dir, device=device)
    began, records = time.monotonic(), []
    questions.sort(key=lambda q: q.video)
    for video, group in groupby(questions, key=lambda q: q.video):
        chat = _watch(model, tokenizer, video, count)
        for question in group:
            records.append(_answer(chat, question))
            if progress:
                progress(len(records), len(questions))
    return {
        "model": str(model_dir),
        "task_file": str(task_file),
        "frames": str(frames),
        **summarise(records),
        "unreadable": sum("error" in record for record in records),
        "seconds": round(time.monotonic() - began, 3),
        "records": records,
    }


def _watch(model: VideoMa2mba, tokenizer: Tokenizer, video: Path, frames: int | None) -> VideoChat | UserError:
    try:
        return VideoChat(model, tokenizer, video, frames)
    except UserError as error:
        return error


def _answer(chat: VideoChat | UserError, question: Question) -> dict[str, Any]:
    record: dict[str, Any] = {
        "id": question.id,
        "task": question.task,
        "video": str(question.video),
        "question": question.question,
        "answer": question.answer,
        "chance": question.chance,
    }
    if isinstance(chat, UserError):
        return {**record, "prediction": "", "correct": False, "frames": 0, "error": str(chat)}
    prediction = "".join(chat.ask(question.question, ANSWER_TOKENS)).strip()
    correct = is_correct(prediction, question.answer)
    return {**record, "prediction": prediction, "correct": correct, "frames": chat.frames}

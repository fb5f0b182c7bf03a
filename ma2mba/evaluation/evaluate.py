"""The accuracy of a model on a task file."""

import time
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ma2mba.errors import UserError
from ma2mba.evaluation.metrics import summarise
from ma2mba.evaluation.parsing import judge
from ma2mba.evaluation.tasks import Question, read_tasks
from ma2mba.inference.chat import VideoChat, parse_frames
from ma2mba.model.pretrained import load_model
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.video.frames import FrameReader

ANSWER_TOKENS = 32
Progress = Callable[[int, int], None]


def evaluate(
    model_dir: Path | str,
    task_file: Path | str,
    frames: str | int = "1fps",
    *,
    media: Path | str | None = None,
    limit: int | None = None,
    task: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    progress: Progress | None = None,
    keep: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Ask every question of the file and compare answers by normalised exact match.

    `media` is the folder of the videos (default: the task file's folder). A video that cannot be used (damaged, over a
    limit, or its decoder hangs or crashes) costs its own questions only: they are not answered and do not count.

    Returns model, task_file, frames, complete, n (the answered questions), accuracy, chance, tasks {name: {n, accuracy,
    chance}}, unreadable (the number of questions that could not be answered), unreadable_videos [{video, questions,
    reason}], seconds, and records (one a question). Calls `progress(done, total)` after every question.

    If the evaluation is stopped, calls `keep` with the result so far, `complete` being False. Raises UserError for bad
    input, and if no video can be used.
    """
    parse_frames(str(frames))
    questions = read_tasks(task_file, media=media, task=task, limit=limit)
    questions.sort(key=lambda q: q.video)
    facts = {"model": str(model_dir), "task_file": str(task_file), "frames": str(frames)}
    records: list[dict[str, Any]] = []
    with FrameReader() as reader:
        model, tokenizer = load_model(model_dir, device, dtype)
        began = time.monotonic()
        try:
            for video, group in groupby(questions, key=lambda q: q.video):
                chat = _watch(model, tokenizer, video, frames, reader)
                for question in group:
                    records.append(_answer(chat, question))
                    if progress:
                        progress(len(records), len(questions))
        except BaseException:
            if keep and records:
                keep(_result(facts, records, began, complete=False))
            raise
    result = _result(facts, records, began, complete=True)
    if not result["n"]:
        raise UserError(_nothing_answered(task_file, result["unreadable_videos"]))
    return result


def _result(facts: dict[str, Any], records: list[dict[str, Any]], began: float, *, complete: bool) -> dict[str, Any]:
    lost = Counter((record["video"], record["error"]) for record in records if "error" in record)
    return {
        **facts,
        "complete": complete,
        **summarise(records),
        "unreadable": sum(lost.values()),
        "unreadable_videos": [
            {"video": video, "questions": questions, "reason": reason} for (video, reason), questions in lost.items()
        ],
        "seconds": round(time.monotonic() - began, 3),
        "records": records,
    }


def _nothing_answered(task_file: Path | str, unreadable: list[dict[str, Any]]) -> str:
    more = f". {len(unreadable) - 1:,} more videos cannot be used either" if len(unreadable) > 1 else ""
    return f"{task_file}: no question can be answered. {unreadable[0]['reason']}{more}"


def _watch(
    model: VideoMa2mba, tokenizer: Tokenizer, video: Path, frames: str | int, reader: FrameReader
) -> VideoChat | UserError:
    try:
        chat = VideoChat(model, tokenizer)
        chat.watch(video, frames, reader=reader, hashed=False)
        return chat
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
    answer = chat.ask(question.question, max_tokens=ANSWER_TOKENS, repetition_stop=True)
    prediction = answer.text.strip()
    correct = judge(prediction, question.answer)
    return {**record, "prediction": prediction, "correct": correct, "frames": chat.watched[0].frames}

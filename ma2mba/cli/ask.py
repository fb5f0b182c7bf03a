"""`ma2mba ask`: questions about a video, or about what a state file has watched."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ma2mba.cli.output import (
    Device,
    Dtype,
    Frames,
    Json,
    ModelFolder,
    Verbose,
    err,
    load_chat,
    print_json,
    require_question,
    require_video,
    watching,
)
from ma2mba.cli.writing import (
    Cache,
    MaxTokens,
    MinP,
    RepetitionStop,
    Seed,
    StateFile,
    Stop,
    Temperature,
    TopK,
    TopP,
    print_answers,
)
from ma2mba.errors import UserError

if TYPE_CHECKING:
    from ma2mba.inference.answer import Answer
    from ma2mba.inference.chat import VideoChat
    from ma2mba.inference.sampling import Sampling

Words = Annotated[
    list[str],
    typer.Argument(metavar="VIDEO QUESTION", help="Video file (or a picture; not with --state), and questions."),
]
FollowUp = Annotated[
    list[str] | None,
    typer.Option("--follow-up", help="Then ask this, in the same conversation. Repeatable."),
]
TOGETHER = 32
"""Questions that are answered together: each takes the memory of one recurrent state, twice."""


def ask(
    words: Words,
    model: ModelFolder,
    state: StateFile = None,
    follow_up: FollowUp = None,
    frames: Frames = "1fps",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = None,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    seed: Seed = None,
    stop: Stop = None,
    repetition_stop: RepetitionStop = False,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="With --json: log-probabilities of the tokens.")] = False,
    cache: Cache = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Ask one or several questions about a video. Each is asked by itself; the answer appears word by word."""
    video, questions = (None, words) if state else (Path(words[0]), words[1:])
    if state and len(words) > 1 and os.path.isfile(words[0]):
        raise UserError(f"{words[0]}: is a file, and --state takes the place of a video. Give questions alone")
    if not questions:
        raise UserError('no question. Ask one, for example: ma2mba ask video.mp4 "What happens?" --model DIR')
    require_no_video_options(state, frames, cache)
    for question in [*questions, *(follow_up or [])]:
        require_question(question)
    from ma2mba.inference.sampling import Sampling

    choices = Sampling(temperature, top_p, top_k, min_p, seed, max_tokens, stop or (), repetition_stop, logprobs)
    chat, timings = open_chat(video, state, model, frames, device, dtype, cache)
    began = time.monotonic()
    groups = [questions[first : first + TOGETHER] for first in range(0, len(questions), TOGETHER)]
    written = [_answer(chat, group, follow_up or [], choices, as_json) for group in groups]
    if as_json:
        asked = [row for rows in written for row in rows]
        speed = {"first_token": asked[0]["timings"]["first_token"], "tokens_per_second": _speed(written)}
        seconds = round(time.monotonic() - began + timings["watch"], 3)
        source = {"video": str(video)} if video else {"state": str(state)}
        print_json(source | _facts(chat, asked) | {"seconds": seconds, "timings": timings | speed})


def require_no_video_options(state: Path | None, frames: str, cache: Path | None) -> None:
    """Raise UserError for options of a video beside --state: they would do nothing."""
    if state and (frames != "1fps" or cache):
        raise UserError(f"{'--cache' if cache else '--frames'}: is for a video. Leave it out with --state")


def open_chat(
    video: Path | None,
    state: Path | None,
    model: Path,
    frames: str,
    device: str,
    dtype: str,
    cache: Path | None,
    *,
    hashed: bool = False,
) -> tuple["VideoChat", dict[str, float]]:
    """Load the model, and watch the video or load the state. Return the chat, and the seconds of each part."""
    from ma2mba.video.frames import FrameReader

    if video:
        require_video(video)
        with FrameReader() as reader:  # its process starts while this one imports PyTorch
            from ma2mba.inference.chat import parse_frames
            from ma2mba.model.pretrained import find_model, read_config

            count = parse_frames(frames)
            with err.status(f"loading {model}"):
                start, began = _since_start(), time.monotonic()
                if not cache:
                    reader.begin(video, read_config(find_model(model)).image_size, count=count)
                chat = load_chat(model, device, dtype)
                loaded = time.monotonic()
            with watching(video) as report:
                chat.watch(video, frames, reader=reader, report=report, cache=cache, hashed=hashed)
    else:
        from ma2mba.inference.state_file import verify_state

        assert state
        verify_state(state)
        with err.status(f"loading {model}"):
            start, began = _since_start(), time.monotonic()
            chat = load_chat(model, device, dtype)
            loaded = time.monotonic()
            chat = chat.load(state)
    return chat, {"start": start, "load": round(loaded - began, 3), "watch": round(time.monotonic() - loaded, 3)}


def _since_start() -> float:
    """Return the seconds since this process began: Python's start, and imports."""
    import psutil

    return round(max(0.0, time.time() - psutil.Process().create_time()), 3)


def _answer(
    chat: "VideoChat", questions: Sequence[str], follow_ups: Sequence[str], choices: "Sampling", as_json: bool
) -> list[dict[str, Any]]:
    """Ask the questions together, then the follow-ups after each of them. Return what JSON says of each question."""
    from ma2mba.inference.chat import Together

    chats = [chat.fork() for _ in questions]
    turns = [list(questions), *([text] * len(questions) for text in follow_ups)]
    answers = []
    for turn in turns:
        together = Together(chats, turn, choices, remember=bool(follow_ups))
        if as_json:
            together.finish()
        else:
            print_answers(together, turn)
        answers.append([_said(*pair, chat.tokenizer) for pair in zip(turn, together.answers, strict=True)])
    rows = zip(*answers, strict=True)
    return [first | ({"follow_ups": list(rest)} if rest else {}) for first, *rest in rows]


def _said(question: str, answer: "Answer", tokenizer: Any) -> dict[str, Any]:
    said: dict[str, Any] = {
        "question": question,
        "answer": answer.text.strip(),
        "reason": answer.reason,
        "tokens": len(answer.tokens),
        "timings": {
            "first_token": round(answer.first_token, 4),
            "last_token": round(answer.seconds, 4),
            "tokens_per_second": answer.tokens_per_second and round(answer.tokens_per_second, 2),
        },
    }
    if answer.seed is not None:
        said["seed"] = answer.seed
    if answer.logprobs:
        texts = [tokenizer.decode([token]) for token in answer.tokens]
        said["logprobs"] = list(zip(texts, answer.logprobs, strict=True))
    return said


def _facts(chat: "VideoChat", asked: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the answers, and what was watched. One question's keys stand by themselves too."""
    videos = [video.model_dump() for video in chat.watched]
    of_one = {key: asked[0][key] for key in ("question", "answer", "reason")} if len(asked) == 1 else {}
    sums = {key: sum(video[key] for video in videos) for key in ("frames", "seconds")}
    return of_one | {
        "answers": asked,
        "frames": sums["frames"],
        "video_seconds": sums["seconds"],
        "watched": videos,
    }


def _speed(written: list[list[dict[str, Any]]]) -> float | None:
    """Return the tokens per second of answers that were written group by group, after each group's first token.

    None if no answer has a second token.
    """
    tokens = sum(row["tokens"] - 1 for rows in written for row in rows)
    times = [[row["timings"] for row in rows] for rows in written]
    seconds = sum(max(t["last_token"] for t in group) - min(t["first_token"] for t in group) for group in times)
    return round(tokens / seconds, 2) if tokens > 0 and seconds > 0 else None

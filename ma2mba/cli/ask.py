"""`ma2mba ask`: one question about a video."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ma2mba.cli.output import (
    Device,
    Dtype,
    Frames,
    Json,
    ModelFolder,
    Verbose,
    device_name,
    dtype_name,
    err,
    out,
    print_json,
    watching,
)
from ma2mba.errors import UserError
from ma2mba.files import fits_utf8


def ask(
    video: Annotated[Path, typer.Argument(help="Video file (or a picture).")],
    question: Annotated[str, typer.Argument(help="Question, in quotes.")],
    model: ModelFolder,
    frames: Frames = "1fps",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Maximum length of the answer.")] = 256,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Ask one question about a video. The answer appears word by word."""
    if not question.strip():
        raise UserError('the question is empty. Ask one, for example: ma2mba ask video.mp4 "What happens?" --model DIR')
    if not fits_utf8(question):
        raise UserError("the question is not valid UTF-8. Type it again in a UTF-8 terminal")
    from ma2mba.video.errors import MediaError, file_size
    from ma2mba.video.frames import FrameReader

    try:
        file_size(video)
    except MediaError as error:
        reason = "this video does not exist" if error.reason == "no such file" else error.reason
        raise UserError(f"{video}: {reason}. Give the path of a video file") from error
    with FrameReader() as reader:  # its process starts while this one imports PyTorch
        from ma2mba.inference.chat import VideoChat, parse_frames
        from ma2mba.model.pretrained import load_model

        count = parse_frames(frames)
        with err.status(f"loading {model}"):
            network, tokenizer = load_model(model, device_name(device), dtype_name(dtype))
        began = time.monotonic()
        with watching(video) as report:
            chat = VideoChat(network, tokenizer, video, count, reader, report)
    pieces = chat.ask(question, max_tokens)
    if not as_json:
        _print_as_it_comes(pieces)
        return
    facts = {"video": str(video), "question": question, "answer": "".join(pieces).strip(), "frames": chat.frames}
    print_json(facts | {"video_seconds": chat.duration, "seconds": round(time.monotonic() - began, 3)})


def _print_as_it_comes(pieces: Iterator[str]) -> None:
    """Print each piece as it comes, without the answer's leading space."""
    begun = False
    for piece in pieces:
        shown = piece if begun else piece.lstrip()
        begun = begun or bool(shown)
        out.print(shown, end="", soft_wrap=True)
        out.file.flush()
    out.print()

"""What all commands share: consoles, common options, JSON, progress and refusals."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ma2mba.errors import UserError
from ma2mba.files import fits_utf8, refuse_link
from ma2mba.progress import Reporter
from ma2mba.terminal import Terminal, log_to_stderr, one_line

if TYPE_CHECKING:
    from ma2mba.inference.chat import VideoChat
    from ma2mba.inference.watch import Progress

out, err = Terminal(), Terminal(stderr=True)

ModelFolder = Annotated[
    Path, typer.Option("--model", help="Model folder (see `ma2mba export`), or run folder: its latest checkpoint.")
]
Frames = Annotated[str, typer.Option("--frames", help="1fps, or the number of frames to sample from the video.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Show what is decided, and why.", callback=lambda on: on and _log_decisions())
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Dtype = Annotated[
    str, typer.Option("--dtype", help="auto, bf16 or fp32. auto: bf16 on a GPU and on CPUs with AMX, else fp32.")
]


def _log_decisions() -> bool:
    """Print the package's debug messages on stderr."""
    log_to_stderr()
    for package in ("ma2mba", "data_prep"):
        logging.getLogger(package).setLevel(logging.DEBUG)
    return True


def device_name(name: str) -> str:
    """Turn `auto`, `cpu` or `cuda` into cpu or cuda. Raise UserError for another name, and for cuda without a GPU."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {name}: unknown device. Use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU. Use --device cpu")
    return "cuda" if torch.cuda.is_available() and name != "cpu" else "cpu"


def dtype_name(name: str) -> str:
    """Return `auto`, `bf16` or `fp32`. Raise UserError for another name."""
    if name not in ("auto", "bf16", "fp32"):
        raise UserError(f"--dtype {name}: unknown dtype. Use auto, bf16 or fp32")
    return name


def load_chat(model: Path, device: str, dtype: str) -> "VideoChat":
    """Load a model folder for a chat. Raise UserError for an unknown device or dtype."""
    from ma2mba.inference.chat import VideoChat

    return VideoChat.open(model, device_name(device), dtype_name(dtype))


def clock(seconds: float) -> str:
    """Return seconds as H:MM:SS."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def print_line(text: str) -> None:
    """Print a line as it is: paths in it are not wrapped."""
    out.print(text, soft_wrap=True)


def print_json(facts: dict[str, Any]) -> None:
    """Print one JSON object, without colours. Values must be finite: JSON has no NaN."""
    print(json.dumps(facts, allow_nan=False).replace("\x7f", r"\u007f"))


def readable(value: Any) -> str:
    """Return a value as text for a table cell, without control characters."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, list):
        return ", ".join(map(readable, value)) or "none"
    if isinstance(value, dict):
        return "\n".join(f"{one_line(str(key))}: {readable(item)}" for key, item in value.items())
    return one_line(str(value))


@contextmanager
def progress(title: str) -> Iterator[Callable[..., None]]:
    """Give a function `report(done, total, note="")` that draws a progress bar from its first call on."""
    shown: list[Reporter] = []
    with ExitStack() as stack:

        def report(done: int, total: int, note: str = "") -> None:
            if not shown:
                shown.append(stack.enter_context(Reporter(title, total, done)))
            shown[0].advance(done - shown[0].done, note)

        yield report


@contextmanager
def watching(video: Path) -> Iterator["Callable[[Progress], None]"]:
    """Give a function that draws how many seconds of a video were read, the frames per second and the time left.

    It draws nothing for a picture.
    """
    with progress(f"watching {one_line(str(video))}, seconds") as report:

        def draw(watched: "Progress") -> None:
            if watched.duration:
                speed = f"{watched.frames_per_second:,.0f} frames/s" if watched.frames else ""
                report(round(watched.seconds), round(watched.duration), speed)

        yield draw


def require_writable(path: Path) -> None:
    """Raise UserError if a file cannot be written at `path`, the value of --out: now, not after hours of work."""
    refuse_link(path)
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder. Name a file in it")
    existing = next(folder for folder in path.absolute().parents if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--out {path}: cannot write in {existing}. Name another file")


def require_video(path: Path) -> None:
    """Raise UserError if there is no file: before a model is loaded."""
    from ma2mba.video.errors import MediaError, file_size

    try:
        file_size(path)
    except MediaError as error:
        reason = "this video does not exist" if error.reason == "no such file" else error.reason
        raise UserError(f"{path}: {reason}. Give the path of a video file") from error


def require_question(text: str) -> None:
    """Raise UserError for a question that no model can be asked."""
    if not text.strip():
        raise UserError('the question is empty. Ask one, for example: ma2mba ask video.mp4 "What happens?" --model DIR')
    if not fits_utf8(text):
        raise UserError("the question is not valid UTF-8. Type it again in a UTF-8 terminal")


def refuse(text: str) -> NoReturn:
    """Print an error in red on stderr and exit with code 2."""
    err.error(text)
    raise SystemExit(2) from None

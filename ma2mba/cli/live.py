"""`ma2mba chat --live`: questions about a pipe, a growing file or rtsp:// while it is watched."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ma2mba.cli.output import clock, err, load_chat, print_line, require_question
from ma2mba.cli.writing import print_answers
from ma2mba.errors import UserError
from ma2mba.files import writing
from ma2mba.terminal import one_line

if TYPE_CHECKING:
    from ma2mba.inference.chat import VideoChat
    from ma2mba.inference.live import LiveWatch
    from ma2mba.inference.sampling import Sampling

LIVE_IDLE = 30.0
LIVE_HELP = (
    "Each question is asked by itself, about what was seen so far. "
    "/save FILE keeps the state, an empty line shows how far it is, /quit or Ctrl-D ends."
)
BEHIND = 5.0
"""Seconds behind the source from which on they are shown."""

Live = Annotated[
    bool,
    typer.Option("--live", help="Watch while it comes: - (standard input), a file that grows, or rtsp://HOST/PATH."),
]
LiveIdle = Annotated[
    float | None,
    typer.Option(
        "--live-idle", min=0.1, help=f"With --live: seconds without data that end the video (default: {LIVE_IDLE:g})."
    ),
]


def require_live_options(
    source: str | None, frames: str, cache: Path | None, *, live: bool, idle: float | None
) -> None:
    """Raise UserError for options that do nothing."""
    if idle is not None and not live:
        raise UserError("--live-idle: is for --live. Add --live, or leave it out")
    if live and source is None:
        raise UserError("--live: name what to watch: -, a file that grows, or rtsp://HOST/PATH")
    if live and (frames != "1fps" or cache):
        raise UserError(f"{'--cache' if cache else '--frames'}: is for a whole video. Leave it out with --live")


@contextmanager
def live_chat(
    source: str, idle: float, model: Path, device: str, dtype: str, choices: "Sampling"
) -> Iterator[Callable[[str], None]]:
    """Watch `source` from its first frame on. Give a function that answers a line of the user.

    Raise UserError if the source gives no frame. If the source is standard input, it becomes the terminal afterwards.
    """
    from ma2mba.video.live import LiveStream

    if source == "-":
        _require_piped()
    with LiveStream(source, idle) as stream:  # its process starts while this one imports PyTorch
        if source == "-":
            _ask_at_terminal()
        from ma2mba.inference.live import LiveWatch

        with err.status(f"loading {model}"):
            chat = load_chat(model, device, dtype)
        name = one_line(stream.name)
        with LiveWatch(chat, stream, lambda text: err.print(f"{name}: {text}", soft_wrap=True)) as watch:
            with err.status(f"waiting for the first frames of {name}"):
                watch.wait()
            yield lambda line: _obey(watch, line, choices)


def save_state(talk: "VideoChat", name: str) -> None:
    """Write a state file for /save."""
    path = Path(name.strip()).expanduser()
    with writing(path):
        talk.save(path)
    print_line(f"saved: {path}")


def _require_piped() -> None:
    if os.isatty(0):
        raise UserError("-: standard input is the terminal. Pipe a video into the command, or name a file")


def _ask_at_terminal() -> None:
    """Make the terminal the standard input of this process: the video keeps its own descriptor."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError as error:
        raise UserError(
            "-: is the video, and there is no terminal for the questions. "
            "Write the video to a file and watch the file, with the questions in standard input"
        ) from error
    os.dup2(terminal, 0)
    os.close(terminal)


def _obey(watch: "LiveWatch", line: str, choices: "Sampling") -> None:
    """Answer a question, or run a command. Raise UserError for what cannot be done."""
    word, _, rest = line.partition(" ")
    if line == "/help":
        print_line(LIVE_HELP)
        return
    if line.startswith("/") and (word != "/save" or not rest.strip()):
        raise UserError(f"{line}: not a command. {LIVE_HELP}")
    if line and not line.startswith("/"):
        require_question(line)
    with watch.so_far() as talk:
        if word == "/save":
            save_state(talk, rest)
        elif line:
            print_answers(talk.begin(line, choices), [line])
        seen = talk.watched[-1]
    behind = f", {watch.behind:,.0f} s behind" if watch.behind >= BEHIND and not watch.ended else ""
    err.print(f"(seen: {clock(seen.seconds)}, {seen.frames:,} frames{behind})", style="dim", soft_wrap=True)

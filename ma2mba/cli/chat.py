"""`ma2mba chat`: a conversation about a video."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ma2mba.cli.ask import open_chat, require_no_video_options
from ma2mba.cli.live import LIVE_HELP, LIVE_IDLE, Live, LiveIdle, live_chat, require_live_options, save_state
from ma2mba.cli.output import Device, Dtype, Frames, ModelFolder, Verbose, err, print_line, require_question
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
    from ma2mba.inference.chat import VideoChat
    from ma2mba.inference.sampling import Sampling

HELP = "/save FILE keeps the state, /forget forgets the conversation but not the video, /quit or Ctrl-D ends."


def chat(
    model: ModelFolder,
    video: Annotated[
        str | None,
        typer.Argument(
            metavar="[VIDEO]", help="Video file (or a picture). With --live, see there.", show_default=False
        ),
    ] = None,
    state: StateFile = None,
    frames: Frames = "1fps",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = None,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    seed: Seed = None,
    stop: Stop = None,
    repetition_stop: RepetitionStop = False,
    cache: Cache = None,
    live: Live = False,
    live_idle: LiveIdle = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    verbose: Verbose = False,
) -> None:
    """Talk about a video. Each question follows the questions and answers before it.

    Questions are read line by line, also from a pipe. /save FILE keeps the state, /forget forgets the conversation but
    not the video, /quit or Ctrl-D ends. With --live, each question is asked by itself, about what was seen so far.
    """
    if (video is None) == (state is None):
        raise UserError("name either a video or a state file: ma2mba chat video.mp4 --model DIR, or --state V.state")
    require_no_video_options(state, frames, cache)
    require_live_options(video, frames, cache, live=live, idle=live_idle)
    from ma2mba.inference.sampling import Sampling

    choices = Sampling(temperature, top_p, top_k, min_p, seed, max_tokens, stop or (), repetition_stop)
    if live and video is not None:
        with live_chat(video, live_idle or LIVE_IDLE, model, device, dtype, choices) as obey:
            _converse(obey, LIVE_HELP)
        return
    talk, _ = open_chat(None if video is None else Path(video), state, model, frames, device, dtype, cache, hashed=True)
    _converse(lambda line: _obey(talk, line, choices), HELP)


def _converse(obey: Callable[[str], None], help_text: str) -> None:
    """Pass each line of the input to `obey`, until /quit or the end."""
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        import readline  # noqa: F401 (input() then edits lines and remembers them)

        err.print(help_text, soft_wrap=True)
    while (line := _line(at_terminal)) not in (None, "/quit"):
        try:
            obey(line or "")
        except UserError as error:
            if not at_terminal:
                raise
            err.error(str(error))
        except KeyboardInterrupt:  # ends this answer, which is not remembered
            if not at_terminal:
                raise
            err.print()


def _line(at_terminal: bool) -> str | None:
    """Return the next line without spaces around it; None at the end of the input."""
    if not at_terminal:
        return line.strip() if (line := sys.stdin.readline()) else None
    try:
        return input("> ").strip()
    except EOFError:
        err.print()
        return None


def _obey(talk: "VideoChat", line: str, choices: "Sampling") -> None:
    """Answer a question, or run a command. Raise UserError for what cannot be done."""
    word, _, rest = line.partition(" ")
    if not line:
        return
    if not line.startswith("/"):
        require_question(line)
        print_answers(talk.begin(line, choices, remember=True), [line])
    elif word == "/save" and rest.strip():
        save_state(talk, rest)
    elif word == "/forget" and not rest:
        talk.forget()
        print_line("the conversation is forgotten")
    elif word == "/help" and not rest:
        print_line(HELP)
    else:
        raise UserError(f"{line}: not a command. {HELP}")

"""What `ask` and `chat` share: the options for how answers are written, and printing answers as they come."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ma2mba.cli.output import out

if TYPE_CHECKING:
    from ma2mba.inference.chat import Together

MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Maximum length of an answer.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        min=0,
        help="0: always the most likely token. Above 0: draw tokens. (Default: 0; 1 with --top-p, --top-k or --min-p.)",
    ),
]
TopP = Annotated[float, typer.Option("--top-p", help="Draw from the likeliest tokens that reach this probability.")]
TopK = Annotated[int, typer.Option("--top-k", min=0, help="Draw from the K most likely tokens (0: all).")]
MinP = Annotated[
    float,
    typer.Option("--min-p", min=0, max=1, help="Draw from tokens with this share of the highest probability."),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="The same seed gives the same text.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="End an answer before this text. Repeatable.")]
RepetitionStop = Annotated[
    bool, typer.Option("--repetition-stop", help="End an answer whose last five tokens appear earlier in it.")
]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder that keeps what was watched: the next command about a video starts at once."),
]
StateFile = Annotated[
    Path | None, typer.Option("--state", help="Continue from a state file (see `ma2mba ingest`) instead of a video.")
]


def print_answers(together: "Together", questions: Sequence[str]) -> None:
    """Print each answer as it comes, in the order of the questions.

    Several answers each stand below their question. While one is printed, the later ones are held back.
    """
    printed = _InOrder(together, questions)
    for number, piece in together:
        printed.held[number] += piece
        printed.show()
    printed.show()


class _InOrder:
    """Prints the answer `current`; `held` has what is not yet printed of each."""

    def __init__(self, together: "Together", questions: Sequence[str]):
        self._answers, self._questions = together.answers, questions
        self.held, self._current, self._begun = [""] * len(questions), 0, False
        self._head()

    def show(self) -> None:
        """Print what is held of the current answer; if it has ended, go on to the next."""
        while self._current < len(self._questions):
            held = self.held[self._current]
            text = held if self._begun else held.lstrip()  # an answer begins with a space
            self._begun = self._begun or bool(text)
            self.held[self._current] = ""
            out.print(text, end="", soft_wrap=True)
            out.file.flush()
            if self._answers[self._current].reason is None:
                return
            out.print()
            self._current, self._begun = self._current + 1, False
            self._head()

    def _head(self) -> None:
        if len(self._questions) > 1 and self._current < len(self._questions):
            out.print(f"> {self._questions[self._current]}", style="bold", soft_wrap=True)

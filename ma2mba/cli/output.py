"""What all commands share: consoles, common options, JSON, progress and refusals."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from ma2mba.errors import UserError
from ma2mba.progress import Reporter

out, err = Console(highlight=False), Console(stderr=True, highlight=False)

ModelFolder = Annotated[Path, typer.Option("--model", help="Model folder (see `ma2mba export`).")]
Frames = Annotated[str, typer.Option("--frames", help="1fps, or the number of frames to sample from the video.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Show what is decided, and why.", callback=lambda on: on and _log_decisions())
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]


def _log_decisions() -> bool:
    """Print the package's debug messages on stderr."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
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


def print_line(text: str) -> None:
    """Print a line as it is: paths in it are neither wrapped nor read as markup."""
    out.print(text, markup=False, soft_wrap=True)


def print_json(facts: dict[str, Any]) -> None:
    """Print one JSON object, without colours. Values must be finite: JSON has no NaN."""
    print(json.dumps(facts, allow_nan=False))


def readable(value: Any) -> str:
    """Return a value as text for a table cell."""
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
        return "\n".join(f"{key}: {readable(item)}" for key, item in value.items())
    return str(value)


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function `report(done, total)` that draws a progress bar from its first call on."""
    shown: list[Reporter] = []
    with ExitStack() as stack:

        def report(done: int, total: int) -> None:
            if not shown:
                shown.append(stack.enter_context(Reporter(title, total)))
            shown[0].advance(done - shown[0].done)

        yield report


def refuse(text: str) -> NoReturn:
    """Print an error in red on stderr and exit with code 2."""
    err.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)
    raise SystemExit(2) from None

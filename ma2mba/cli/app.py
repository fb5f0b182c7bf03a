"""The command line: ask, eval, export, inspect, plan, replay, doctor. What is slow to import waits for its command."""

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ma2mba import __version__
from ma2mba.cli.devices import device_name
from ma2mba.cli.doctor import doctor
from ma2mba.cli.plan import plan
from ma2mba.cli.replay import replay
from ma2mba.errors import UserError
from ma2mba.files import atomic_write
from ma2mba.progress import Reporter

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Ask Video-Ma2mba about a video, evaluate it, export it, look into its folders.",
)
out, err = Console(highlight=False), Console(stderr=True, highlight=False)

Model = Annotated[Path, typer.Option("--model", help="A model folder (see `ma2mba export`).")]
Frames = Annotated[str, typer.Option("--frames", help="1fps, or a number of frames spread over the video.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text for people.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many questions.")]
OutFile = Annotated[
    Path | None, typer.Option("--out", help="Also write the whole result, every answer, to this JSON file.")
]


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show:
        out.print(f"ma2mba {__version__}")
        raise typer.Exit


@app.command()
def ask(
    video: Annotated[Path, typer.Argument(help="A video file (or a picture).")],
    question: Annotated[str, typer.Argument(help="What to ask, in quotes.")],
    model: Model,
    frames: Frames = "1fps",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 256,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Ask one question about a video; the answer appears word by word."""
    if not question.strip():
        raise UserError('the question is empty; ask one, as in: ma2mba ask video.mp4 "What happens?" --model DIR')
    if not video.is_file():
        raise UserError(f"{video}: no such video; give the path of a video file")
    from ma2mba.inference.chat import VideoChat, parse_frames
    from ma2mba.model.pretrained import load_model

    count = parse_frames(frames)
    with err.status(f"watching {escape(str(video))}"):
        network, tokenizer = load_model(model, device=device_name(device))
        began = time.monotonic()
        chat = VideoChat(network, tokenizer, video, count)
        chat.watch()
    pieces = chat.ask(question, max_tokens)
    if not as_json:
        _echo(pieces)
        return
    facts = {"video": str(video), "question": question, "answer": "".join(pieces).strip(), "frames": chat.frames}
    facts |= {"video_seconds": chat.duration, "seconds": round(time.monotonic() - began, 3)}
    print(json.dumps(facts, allow_nan=False))


@app.command("eval")
def evaluate_command(
    model: Model,
    task: Annotated[Path, typer.Option("--task", help="JSONL: id, video, question, answer, options, task.")],
    frames: Frames = "1fps",
    only: Annotated[str | None, typer.Option("--only", help="Only questions of this task, such as needle.")] = None,
    limit: Limit = None,
    out_file: OutFile = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Ask every question of a task file and count the right answers."""
    from ma2mba.evaluation.evaluate import evaluate
    from ma2mba.inference.chat import parse_frames

    parse_frames(frames)
    if out_file:
        _require_writable(out_file)
    with _progress("questions") as tell:
        result = evaluate(model, task, frames, limit=limit, task=only, device=device_name(device), progress=tell)
    if as_json:
        print(json.dumps(result, allow_nan=False))
    else:
        out.print(f"{model} on {task}, frames: {frames}", markup=False, soft_wrap=True)
        out.print(_accuracy_table(result))
    if out_file:
        with atomic_write(out_file) as file:
            json.dump(result, file, indent=1)


def _require_writable(path: Path) -> None:
    """Raises UserError when a file cannot be written there, now rather than after hours of answers."""
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder; name a file in it")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--out {path}: nothing can be written in {there}; name another file")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out_dir: Annotated[Path, typer.Option("--out", help="The model folder to write.")],
    step: Annotated[int | None, typer.Option("--step", min=0, help="Of this step instead of the latest.")] = None,
) -> None:
    """Copy a checkpoint's model, verified by its checksums, to a folder of its own."""
    from ma2mba.cli.folders import export_model

    source = export_model(run, out_dir, step)
    out.print(f"{out_dir}: the model of {source}, checksums verified", markup=False, soft_wrap=True)


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="A shard, run or model folder.")], as_json: Json = False
) -> None:
    """Say what a folder holds."""
    from ma2mba.cli.folders import describe

    facts = describe(folder)
    if as_json:
        print(json.dumps(facts, allow_nan=False))
        return
    table = Table("", escape(str(folder)), title=f"{facts['kind']} folder", title_justify="left")
    for key, value in facts.items():
        table.add_row(key.replace("_", " "), escape(_readable(value)))
    out.print(table)


app.command()(plan)
app.command()(replay)
app.command()(doctor)


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that appears at the first `tell(done, total)`."""
    shown: list[Reporter] = []
    with ExitStack() as stack:

        def tell(done: int, total: int) -> None:
            if not shown:
                shown.append(stack.enter_context(Reporter(title, total)))
            shown[0].advance(done - shown[0].done)

        yield tell


def _echo(pieces: Iterator[str]) -> None:
    """Print each piece as it comes, without the answer's leading space."""
    begun = False
    for piece in pieces:
        shown = piece if begun else piece.lstrip()
        begun = begun or bool(shown)
        out.print(shown, end="", markup=False, soft_wrap=True)
        out.file.flush()
    out.print()


def _accuracy_table(result: dict[str, Any]) -> Table:
    unreadable = f", {result['unreadable']} unreadable" if result["unreadable"] else ""
    table = Table("task", caption=f"{result['n']} questions in {result['seconds']:.1f} s{unreadable}")
    for heading in ("questions", "right", "by chance"):
        table.add_column(heading, justify="right")
    rows = {**result["tasks"], "all": result} if len(result["tasks"]) > 1 else result["tasks"]
    for name, means in rows.items():
        table.add_row(escape(name), str(means["n"]), f"{means['accuracy']:.1%}", f"{means['chance']:.1%}")
    return table


def _readable(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, list):
        return ", ".join(map(_readable, value)) or "none"
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_readable(item)}" for key, item in value.items())
    return str(value)


def main() -> None:
    """Run the command line. Bad input, and a path that cannot be used, is said in red on stderr and ends with exit
    code 2."""
    try:
        app()
    except UserError as error:
        _refuse(str(error))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _refuse("a disk is full; free some of it, and give the command again")
        if error.filename is None:
            raise
        _refuse(f"{error.filename}: cannot be used ({error.strerror}); give another path, or put that right")


def _refuse(text: str) -> NoReturn:
    err.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)
    raise SystemExit(2) from None

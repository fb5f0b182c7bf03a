"""`ma2mba eval`: the accuracy of a model on a task file."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

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
    print_line,
    progress,
    require_writable,
)
from ma2mba.files import atomic_write
from ma2mba.terminal import one_line

Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Answer only the first N questions.")]
OutFile = Annotated[
    Path | None,
    typer.Option("--out", help="Also write the whole result, with every answer, to this JSON file. Ctrl-C keeps it."),
]
Media = Annotated[
    Path | None, typer.Option("--media", help="Folder of the videos (default: the folder of the task file).")
]
SHOWN = 20
"""Unreadable videos that the text output lists; JSON lists all."""


def evaluate_command(
    model: ModelFolder,
    task: Annotated[Path, typer.Option("--task", help="JSONL file: id, video, question, answer, options, task.")],
    media: Media = None,
    frames: Frames = "1fps",
    only: Annotated[str | None, typer.Option("--only", help="Answer only questions of this task, as needle.")] = None,
    limit: Limit = None,
    out_file: OutFile = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Ask every question of a task file and count the right answers.

    A video that cannot be used costs its own questions only. They are listed, and do not count as wrong. Exit code 0 if
    at least one question was answered.
    """
    from ma2mba.evaluation.evaluate import evaluate
    from ma2mba.inference.chat import parse_frames

    parse_frames(frames)
    if out_file:
        require_writable(out_file)

    def keep(result: dict[str, Any]) -> None:
        if out_file:
            _write(result, out_file)
            err.print(f"stopped after {len(result['records'])} questions: {out_file} has their answers", soft_wrap=True)

    choice: dict[str, Any] = {"media": media, "limit": limit, "task": only, "dtype": dtype_name(dtype)}
    with progress("questions") as report:
        result = evaluate(model, task, frames, **choice, device=device_name(device), progress=report, keep=keep)
    if as_json:
        print_json(result)
    else:
        print_line(f"{model} on {task}, frames: {frames}")
        out.print(_accuracy_table(result))
        _list_unreadable(result["unreadable_videos"])
    if out_file:
        _write(result, out_file)


def _write(result: dict[str, Any], path: Path) -> None:
    with atomic_write(path) as file:
        json.dump(result, file, indent=1)


def _accuracy_table(result: dict[str, Any]) -> Table:
    unanswered = f", {result['unreadable']} not answered" if result["unreadable"] else ""
    table = Table("task", caption=f"{result['n']} questions in {result['seconds']:.1f} s{unanswered}")
    for heading in ("questions", "right", "by chance"):
        table.add_column(heading, justify="right")
    rows = {**result["tasks"], "all": result} if len(result["tasks"]) > 1 else result["tasks"]
    for name, means in rows.items():
        table.add_row(one_line(name), str(means["n"]), _percent(means["accuracy"]), _percent(means["chance"]))
    return table


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"


def _list_unreadable(videos: list[dict[str, Any]]) -> None:
    """Print one line for each video that could not be used, with the number of its questions."""
    for video in videos[:SHOWN]:
        print_line(f"not answered: {video['questions']} about {' '.join(video['reason'].split())}")
    if len(videos) > SHOWN:
        print_line(f"not answered: {len(videos) - SHOWN:,} more videos, which --json and --out list")

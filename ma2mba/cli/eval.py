"""`ma2mba eval`: the accuracy of a model on a task file or a benchmark."""

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ma2mba.cli import needle as needles
from ma2mba.cli.output import (
    Device,
    Dtype,
    Frames,
    Json,
    Verbose,
    device_name,
    dtype_name,
    out,
    print_json,
    print_line,
    progress,
)
from ma2mba.cli.stopping import keeping_answers
from ma2mba.errors import UserError
from ma2mba.files import refuse_link
from ma2mba.terminal import one_line
from ma2mba.text import LISTED

if TYPE_CHECKING:
    from ma2mba.evaluation.evaluate import Questions
    from ma2mba.evaluation.sharing import Part

ModelOption = Annotated[
    Path | None,
    typer.Option("--model", help="Model folder (see `ma2mba export`), or run folder: its latest checkpoint."),
]
TaskFile = Annotated[
    Path | None,
    typer.Option("--task", help="JSONL file of questions: id, video, question, answer, options, task."),
]
Benchmark = Annotated[
    str | None, typer.Option("--benchmark", help="Benchmark whose questions are read from --data, as video-mme.")
]
Data = Annotated[
    str | None, typer.Option("--data", help="With --benchmark: its folder, or its name on the Hugging Face hub.")
]
Media = Annotated[
    Path | None, typer.Option("--media", help="Folder of the videos (default: the folder of the task file, or --data).")
]
Split = Annotated[
    str | None, typer.Option("--split", help="With --benchmark: val, test, ... (default: the first one that is there).")
]
Online = Annotated[
    bool, typer.Option("--online", help="With --benchmark: download the annotations if --data names a hub data set.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Answer only the first N questions.")]
Only = Annotated[str | None, typer.Option("--only", help="Answer only questions of this task, as needle.")]
OutFolder = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for the answers and the report. The same command again resumes there."),
]
ReportOf = Annotated[
    Path | None, typer.Option("--report", help="Ask nothing. Report on the answers in this folder, of all parts.")
]
Scoring = Annotated[
    str, typer.Option("--scoring", help="letter: the option that the answer names. likelihood: the likeliest option.")
]
Subtitles = Annotated[
    bool, typer.Option("--subtitles", help="Put the benchmark's subtitles into the prompt, as its authors do.")
]
PartOption = Annotated[
    str | None,
    typer.Option(
        "--part",
        help="i/M: answer only about media i, i + M, i + 2M, ... (task i of a SLURM array; default: the rank of "
        "torchrun or srun).",
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Remove the answers in --out and start over.")]
SHOWN = 20
"""Unreadable videos that the text output lists; JSON lists all."""


def evaluate_command(
    model: ModelOption = None,
    task: TaskFile = None,
    benchmark: Benchmark = None,
    data: Data = None,
    media: Media = None,
    split: Split = None,
    online: Online = False,
    frames: Frames = "1fps",
    scoring: Scoring = "letter",
    subtitles: Subtitles = False,
    only: Only = None,
    limit: Limit = None,
    out_folder: OutFolder = None,
    part: PartOption = None,
    fresh: Fresh = False,
    report: ReportOf = None,
    needle: needles.Needle = False,
    lengths: needles.Lengths = None,
    depths: needles.Depths = None,
    haystack: needles.Haystack = None,
    questions: needles.QuestionsEach = None,
    seed: needles.Seed = None,
    hide_options: needles.HideOptions = False,
    keep_videos: needles.KeepVideos = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Ask every question of a task file or a benchmark, or about needles in long videos, and count the right answers.

    Every answer is written to FOLDER/answers.jsonl as it comes: a command that was stopped or killed resumes where it
    was. report.json, accuracy.png and by_length.png follow when all questions are answered. A video that cannot be used
    costs its own questions only. They are listed, and do not count as wrong. Exit code 0 if at least one question was
    answered.
    """
    if report:
        return _report(report, as_json)
    if model is None:
        raise UserError("--model is missing. Give the folder of a model")
    from ma2mba.evaluation.sharing import Part, choose_gpu

    choose_gpu()
    from ma2mba.evaluation.evaluate import evaluate
    from ma2mba.inference.chat import parse_frames

    parse_frames(frames)
    if out_folder:
        require_folder(out_folder)
    share = Part.choose(part)
    if share.of > 1 and not out_folder:
        raise UserError(f"--out is missing. Part {share} of an evaluation needs a folder that all parts share")
    grid = needles.NeedleOptions(lengths, depths, haystack, questions, seed, hide_options, keep_videos)
    asked = _Asked(task, benchmark, data, media, only, limit, split, subtitles, online)
    choice: dict[str, Any] = {
        "scoring": scoring,
        "dtype": dtype_name(dtype),
        "device": device_name(device),
    }
    if needle:
        asked.refuse_given("--needle")
        grid.grid()
    else:
        grid.refuse_given()
    with tempfile.TemporaryDirectory() if out_folder is None else nullcontext(str(out_folder)) as folder:
        asking = needles.needle_questions(grid, Path(folder), share) if needle else nullcontext(asked.questions())
        telling = needles.watched_seconds(grid.grid(), share) if needle else progress("questions")
        with asking as found, telling as tell, keeping_answers(out_folder) as count:
            result = evaluate(
                model, found, Path(folder), frames, **choice, part=share, fresh=fresh, progress=count(tell)
            )
    if result:
        _print(result, out_folder, as_json)
    elif out_folder:
        _say_missing(out_folder, share, as_json)


def require_folder(path: Path) -> None:
    """Raise UserError if the value of --out is a file, or names one as it did in earlier versions."""
    refuse_link(path)
    if path.suffix in (".json", ".jsonl"):
        raise UserError(f"--out {path}: names a file. Name a folder: report.json in it will hold the result")
    if path.exists() and not path.is_dir():
        raise UserError(f"--out {path}: is not a folder. Name a folder")


@dataclass(frozen=True)
class _Asked:
    """The options that choose the questions of a task file or a benchmark."""

    task: Path | None
    benchmark: str | None
    data: str | None
    media: Path | None
    only: str | None
    limit: int | None
    split: str | None
    subtitles: bool
    online: bool

    def refuse_given(self, beside: str) -> None:
        """Raise UserError if one of the options is given."""
        for name in (name for name, value in vars(self).items() if value not in (None, False)):
            raise UserError(f"--{name} and {beside}: both given. Leave out one of them")

    def questions(self) -> "Questions":
        """Return the questions that the options choose. Raise UserError for options that do not fit together."""
        from ma2mba.evaluation.benchmarks import read_benchmark
        from ma2mba.evaluation.evaluate import Questions
        from ma2mba.evaluation.tasks import read_tasks

        if (self.task is None) == (self.benchmark is None):
            given = "both given" if self.task else "both missing"
            raise UserError(
                f"--task and --benchmark: {given}. Give a file of questions, the name of a benchmark, or --needle"
            )
        if self.task:
            extra = {
                "--data": self.data,
                "--subtitles": self.subtitles,
                "--split": self.split,
                "--online": self.online,
            }
            for name in (name for name, value in extra.items() if value):
                raise UserError(f"{name}: is for --benchmark. Leave it out with --task")
            found = read_tasks(self.task, media=self.media, task=self.only, limit=self.limit)
            return Questions([question.item for question in found], str(self.task))
        assert self.benchmark
        if not self.data:
            raise UserError(
                f"--data is missing. Give the folder of {self.benchmark}, or its name on the Hugging Face hub"
            )
        items = read_benchmark(
            self.benchmark,
            self.data,
            media=self.media,
            split=self.split,
            subtitles=self.subtitles,
            online=self.online,
        )
        chosen = [item for item in items if self.only in (None, item.task)][: self.limit]
        if not chosen:
            raise UserError(
                f"--only {self.only}: {self.benchmark} has no such task. Use one of "
                f"{names({item.task for item in items})}"
            )
        return Questions(chosen, self.data, self.benchmark, subtitles=self.subtitles)


def names(tasks: set[str]) -> str:
    return ", ".join(sorted(tasks)[:LISTED])


def _report(folder: Path, as_json: bool) -> None:
    """Report on the answers of all parts. With incomplete parts, write nothing, and exit with code 1."""
    from ma2mba.evaluation.results import build, collect, write_report

    collected = collect(folder)
    missing = collected.missing()
    if missing and not collected.records:
        raise UserError(f"{folder}: has no answer yet. Run the evaluation first")
    report = build(collected) if missing else write_report(collected, folder)
    _print(report, None if missing else folder, as_json)
    if missing:
        if not as_json:
            print_line(f"incomplete: {'; '.join(missing)}. Run the missing parts, then `ma2mba eval --report {folder}`")
        raise SystemExit(1)


def _say_missing(folder: Path, part: "Part", as_json: bool) -> None:
    from ma2mba.evaluation.results import collect

    missing = collect(folder).missing()
    if as_json:
        print_json({"complete": False, "part": str(part), "missing": missing})
    else:
        print_line(
            f"{folder}: part {part} is complete; {'; '.join(missing)}. The part that ends last writes the report"
        )


def _print(report: dict[str, Any], folder: Path | None, as_json: bool) -> None:
    if as_json:
        return print_json(report)
    if "needle_grid" in report:
        needles.print_grid(report)
    else:
        print_line(f"{report['model']} on {report['questions_from']}, frames: {report['frames']}")
        out.print(_accuracy_table(report))
    _list_unreadable(report["unreadable_videos"])
    if folder:
        print_line(f"report: {folder}/report.json, with charts beside it; every answer: answers*.jsonl")


def _accuracy_table(report: dict[str, Any]) -> Table:
    """Return the accuracy of all questions, of each task and of each length."""
    counts = {"not answered": report["unreadable"], "empty": report["empty"], "without an option": report["unparsed"]}
    said = [f"{report['n']:,} questions answered", *(f"{count:,} {what}" for what, count in counts.items() if count)]
    table = Table("", caption=", ".join(said))
    for heading in ("questions", "right", "95% interval", "by chance"):
        table.add_column(heading, justify="right")
    for heading, groups in (("task", report["tasks"]), ("length", report["lengths"])):
        if len(groups) > 1 or (heading == "task" and "all" not in groups):
            for name, means in groups.items():
                _add_row(table, f"{heading}: {one_line(name)}", means)
            table.add_section()
    by_tasks = report["headline"] == "mean_of_tasks"
    _add_row(table, "all", report, "" if by_tasks else "bold")
    if len(report["tasks"]) > 1:
        average, style = report["mean_of_tasks"], "bold" if by_tasks else ""
        table.add_row(
            "mean of the tasks", "", _percent(average["accuracy"]), _interval(average["ci95"]), "", style=style
        )
    return table


def _add_row(table: Table, name: str, means: dict[str, Any], style: str = "") -> None:
    accuracy, chance = _percent(means["accuracy"]), _percent(means["chance"])
    table.add_row(name, f"{means['n']:,}", accuracy, _interval(means["ci95"]), chance, style=style)


def _interval(bounds: tuple[float, float] | None) -> str:
    return f"{100 * bounds[0]:.1f} to {bounds[1]:.1%}" if bounds else "-"


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"


def _list_unreadable(videos: list[dict[str, Any]]) -> None:
    """Print one line for each video that could not be used, with the number of its questions."""
    for video in videos[:SHOWN]:
        print_line(f"not answered: {video['questions']} about {' '.join(video['reason'].split())}")
    if len(videos) > SHOWN:
        print_line(f"not answered: {len(videos) - SHOWN:,} more videos, which report.json lists")

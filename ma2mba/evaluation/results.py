"""The report of an evaluation: means, intervals, what could not be answered, and charts, from the files of all parts.

It holds no time and no path of its own folder: the same answers give the same bytes.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ma2mba.errors import UserError
from ma2mba.evaluation.answers_file import Record, read_answers
from ma2mba.evaluation.benchmarks import BENCHMARKS
from ma2mba.evaluation.charts import charts
from ma2mba.evaluation.needle_report import needle_grid
from ma2mba.evaluation.paper import published
from ma2mba.evaluation.run_file import RunFile
from ma2mba.evaluation.scores import by_length, grouped, mean_of_tasks, means
from ma2mba.evaluation.sharing import Part
from ma2mba.files import atomic_path, atomic_write

RUN, ANSWERS, REPORT = "run.json", "answers.jsonl", "report.json"
IN_REPORT = (
    *("id", "task", "video", "question", "answer", "prediction", "parser", "choice", "correct", "score", "frames"),
    *("length", "depth", "error"),
)
"""The fields of a record that the report repeats."""
Report = dict[str, Any]


@dataclass(frozen=True)
class Collected:
    """The answers of all parts of a run so far. `parts`: the number of answers that each part has."""

    run: RunFile
    records: list[Record]
    parts: list[int]

    def missing(self) -> list[str]:
        """Return a line for each part that is not complete."""
        return self.run.missing(self.parts)


def collect(folder: Path) -> Collected:
    """Read the answers of all parts. Raise UserError if there is no run, or if a part is of another run."""
    run = RunFile.read(folder / RUN)
    parts = [read_answers(folder / part.name(ANSWERS), run.id) for part in Part(0, len(run.questions)).siblings()]
    records = [record for part in parts for record in part.values()]
    return Collected(run, sorted(records, key=lambda record: record["number"]), [len(part) for part in parts])


def build(collected: Collected) -> Report:
    """Return the report of the answers so far. Raise UserError if no question could be answered.

    The keys of `means` for all questions, for each of `tasks` and each of `lengths`; `mean_of_tasks`, and by `headline`
    which of the two means the benchmark's authors report; the run's options; the `needle_grid` of an evaluation with
    needles; `unreadable_videos` [{video, questions, reason}]; the paper's results; and `records`, one a question.
    """
    records, about = collected.records, collected.run.about
    lost = Counter((record["video"], record["error"]) for record in records if "error" in record)
    unreadable = [
        {"video": video, "questions": questions, "reason": reason} for (video, reason), questions in lost.items()
    ]
    if len(records) == sum(lost.values()):
        raise UserError(_nothing_answered(about["questions"], unreadable))
    tasks = grouped(records, lambda record: record["task"])
    benchmark = about["benchmark"]
    options = dict(collected.run.options)
    paper = published(benchmark, options["frames"])
    return {
        "benchmark": benchmark or None,
        "questions_from": about["questions"],
        "model": about["model"],
        "model_fingerprint": options.pop("model"),
        "questions_hash": options.pop("questions"),
        **{key: value for key, value in options.items() if key != "parts"},
        "complete": not collected.missing(),
        "questions": sum(collected.run.questions),
        **means(records),
        "mean_of_tasks": mean_of_tasks(records),
        "headline": "mean_of_tasks" if benchmark and BENCHMARKS[benchmark].mean_over_tasks else "accuracy",
        "tasks": {task: means(group) for task, group in sorted(tasks.items())},
        "lengths": {name: means(group) for name, group in by_length(records).items()},
        "unreadable_videos": unreadable,
        **({"needle_grid": needle_grid(records, options)} if "needle_lengths" in options else {}),
        "paper": {"accuracy_percent": paper.percent, "note": paper.note} if paper else None,
        "records": [{key: record[key] for key in IN_REPORT if key in record} for record in records],
    }


def _nothing_answered(source: str, unreadable: list[dict[str, Any]]) -> str:
    more = f". {len(unreadable) - 1:,} more videos cannot be used either" if len(unreadable) > 1 else ""
    reason = f". {unreadable[0]['reason']}" if unreadable else ""
    return f"{source}: no question can be answered{reason}{more}"


def write_report(collected: Collected, folder: Path) -> Report:
    """Write report.json and the charts to `folder`, each whole or not at all. Return the report."""
    report = build(collected)
    with atomic_write(folder / REPORT) as file:
        json.dump(report, file, indent=1)
        file.write("\n")
    for name, draw in charts(report, folder).items():
        with atomic_path(folder / name) as temporary:
            draw(temporary)
    return report

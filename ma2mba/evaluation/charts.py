"""The charts of an evaluation's report: beside the paper's results, by length of the video, and by task."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ma2mba.evaluation.benchmarks import BENCHMARKS
from ma2mba.evaluation.needle_report import CHARTS, needle_charts
from ma2mba.plots import Share, draw_bars, draw_by_length, draw_rows
from ma2mba.terminal import one_line

ACCURACY, LENGTHS, TASKS = "accuracy.png", "by_length.png", "by_task.png"
PICTURES = ACCURACY, LENGTHS, TASKS, *CHARTS
Draw = Callable[[Path], None]
MOST_BARS, MOST_ROWS = 6, 60
"""Tasks that a chart shows as bars, and as rows."""
TITLE = 40
"""Letters of a name in a title."""


def charts(report: Mapping[str, Any], folder: Path) -> dict[str, Draw]:
    """Return for each picture's name a function that draws it to a path. `folder`: the run's."""
    if "needle_grid" in report:
        return needle_charts(report, folder)
    benchmark = report["benchmark"]
    name = BENCHMARKS[benchmark].title if benchmark else Path(report["questions_from"]).name
    frames = "1 frame per second" if report["frames"] == "1fps" else f"{report['frames']} frames"
    below = f"{report['n']:,} questions about {report['videos']:,} videos, {frames}, 95% intervals"
    name = one_line(name)
    title = f"Accuracy on {name if len(name) <= TITLE else f'{name[: TITLE - 1]}…'}"
    drawn: dict[str, Draw] = {
        ACCURACY: partial(draw_bars, title, below, *_beside_the_paper(report), (report["paper"] or {}).get("note", "")),
        LENGTHS: partial(draw_by_length, f"{title} by length", below, _shares(report["lengths"])),
    }
    if len(report["tasks"]) > 1:
        rows = dict(list(_shares(report["tasks"]).items())[:MOST_ROWS])
        drawn[TASKS] = partial(draw_rows, f"{title} by task", below, rows)
    return drawn


def _beside_the_paper(report: Mapping[str, Any]) -> tuple[dict[str, Share], dict[str, dict[str, float]]]:
    """Return our share of each group, and for each of the paper's models its share of each group."""
    average = report["mean_of_tasks"] if report["headline"] == "mean_of_tasks" else {}
    groups = {**report["lengths"], "all": {**report, **average}}
    paper = report["paper"]
    if not paper:
        few = report["tasks"] if 1 < len(report["tasks"]) <= MOST_BARS else {}
        return _shares({**few, "all": groups["all"]}), {}
    theirs = paper["accuracy_percent"]
    by_model: dict[str, dict[str, float]] = {}
    for group, results in theirs.items():
        for model, percent in results.items():
            by_model.setdefault(f"paper, {model}", {})[group] = percent / 100
    return _shares({group: groups[group] for group in theirs if group in groups}), by_model


def _shares(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Share]:
    return {
        one_line(name): Share(of["accuracy"], of["ci95"], of["chance"], of["n"])
        for name, of in groups.items()
        if of["accuracy"] is not None
    }

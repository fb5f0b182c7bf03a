"""The report of a needle evaluation: the accuracy at each length and depth, its heat map, and the needles' pictures."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ma2mba.evaluation.answers_file import Record
from ma2mba.evaluation.scores import mean
from ma2mba.plots import draw_needle_grid, draw_pictures
from ma2mba.video.pictures import read_image

CHARTS = GRID, NEEDLES = "needle_grid.png", "needles.png"
FOLDER = "needles"
"""The folder of the pictures in --out: one for each length and depth."""


def needle_grid(records: Sequence[Record], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the grid of a report. A question whose video could not be used does not count.

    lengths_seconds, depths  the rows and the columns, as `Grid.options` has them
    accuracy                 [length][depth], None where no question was answered
    questions                [length][depth], the answered questions
    accuracy_by_length       over all questions about a length, None without one
    questions_by_length      the answered questions about a length
    chance                   the probability of guessing the symbol
    """
    lengths, depths = options["needle_lengths"], options["needle_depths"]
    scores: dict[tuple[int, float], list[float]] = {(length, depth): [] for length in lengths for depth in depths}
    answered = [record for record in records if "error" not in record]
    for record in answered:
        scores[record["length"], record["depth"]].append(record["score"])
    of_length = {length: [score for depth in depths for score in scores[length, depth]] for length in lengths}
    return {
        "lengths_seconds": lengths,
        "depths": depths,
        "accuracy": [[mean(scores[length, depth]) for depth in depths] for length in lengths],
        "questions": [[len(scores[length, depth]) for depth in depths] for length in lengths],
        "accuracy_by_length": [mean(of_length[length]) for length in lengths],
        "questions_by_length": [len(of_length[length]) for length in lengths],
        "chance": mean([record["chance"] for record in answered]),
    }


def picture_path(folder: Path, question: str) -> Path:
    """Return where the first picture with the needle of a question is kept."""
    return folder / FOLDER / f"{question}.png"


def needle_charts(report: Mapping[str, Any], folder: Path) -> dict[str, Callable[[Path], None]]:
    """Return for each picture's name a function that draws it to a path. `folder`: the run's."""
    grid = report["needle_grid"]
    frames = "1 frame per second" if report["frames"] == "1fps" else f"{report['frames']} frames"
    pictures = {}
    for record in report["records"]:
        path = picture_path(folder, record["id"])
        if path.is_file():
            pictures[record["length"], record["depth"]] = read_image(path)
    drawn: dict[str, Callable[[Path], None]] = {GRID: partial(draw_needle_grid, grid, frames)}
    if pictures:
        drawn[NEEDLES] = partial(draw_pictures, pictures, grid["lengths_seconds"], grid["depths"])
    return drawn

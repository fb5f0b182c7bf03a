"""The options of `ma2mba eval --needle`, and how its grid is printed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from ma2mba.cli.output import out, print_line, progress
from ma2mba.errors import UserError

if TYPE_CHECKING:
    from ma2mba.evaluation.evaluate import Questions
    from ma2mba.evaluation.needle.grid import Grid
    from ma2mba.evaluation.sharing import Part

LENGTHS, DEPTHS, QUESTIONS = "60,600,3600", "0:1:0.1", 96
Needle = Annotated[
    bool,
    typer.Option("--needle", help="Ask which symbol appeared in long videos: a grid of --lengths and --depths."),
]
Lengths = Annotated[
    str | None, typer.Option("--lengths", help=f"With --needle: seconds of the videos (default: {LENGTHS}).")
]
Depths = Annotated[
    str | None,
    typer.Option(
        "--depths",
        help=f"With --needle: places of the symbol, first:last:step or a list; 0: start, 1: end (default: {DEPTHS}).",
    ),
]
Haystack = Annotated[
    list[Path] | None,
    typer.Option(
        "--haystack",
        help="With --needle: plant the symbols into this video, as long as the longest of --lengths (default: toy "
        "videos). Repeatable: the questions take the videos in turn.",
    ),
]
QuestionsEach = Annotated[
    int | None,
    typer.Option("--questions", min=1, help=f"With --needle: questions about each length (default: {QUESTIONS})."),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="With --needle: another seed gives other videos and needles (default: 0)."),
]
HideOptions = Annotated[
    bool,
    typer.Option(
        "--hide-options", help="With --needle: ask without the eight options, as the model of `make demo` learned it."
    ),
]
KeepVideos = Annotated[bool, typer.Option("--keep-videos", help="With --needle: keep the toy videos, in --out/videos.")]


@dataclass(frozen=True)
class NeedleOptions:
    """The values of the options above."""

    lengths: str | None
    depths: str | None
    haystack: list[Path] | None
    questions: int | None
    seed: int | None
    hide_options: bool
    keep_videos: bool

    def refuse_given(self) -> None:
        """Raise UserError if one of the options is given: it has a meaning with --needle alone."""
        for name, value in vars(self).items():
            if value not in (None, False, []):
                raise UserError(f"--{name.replace('_', '-')}: is for --needle. Add --needle, or leave it out")

    def grid(self) -> "Grid":
        """Return the grid that the options describe. Raise UserError for bad values."""
        from ma2mba.evaluation.needle.grid import Grid, parse_depths, parse_lengths

        lengths, depths = parse_lengths(self.lengths or LENGTHS), parse_depths(self.depths or DEPTHS)
        if self.haystack and self.keep_videos:
            raise UserError("--keep-videos: no video is written with --haystack. Leave out one of them")
        questions = QUESTIONS if self.questions is None else self.questions
        return Grid(lengths, depths, questions, self.seed or 0, self.hide_options)


@contextmanager
def needle_questions(options: NeedleOptions, folder: Path, part: "Part") -> Iterator["Questions"]:
    """Give the questions of a grid. Toy videos are written into `folder` while the questions are asked."""
    from ma2mba.evaluation.needle.haystack import Haystacks
    from ma2mba.evaluation.needle.toy import ToyVideos

    grid = options.grid()
    with ExitStack() as stack:
        if options.haystack:
            yield Haystacks(grid, options.haystack, folder).questions()
        else:
            yield stack.enter_context(ToyVideos(grid, folder, part, keep=options.keep_videos)).questions()


@contextmanager
def watched_seconds(grid: "Grid", part: "Part") -> Iterator[Callable[[int, int], None]]:
    """Give a function of (answered questions, questions) that reports the seconds of video: so the time left is right.

    An hour of video takes longer than a minute of video, and the questions are asked in the order of the lengths.
    """
    seconds = [0, *accumulate(place.length for place in part.share(list(grid.places())))]
    with progress("needles, seconds of video") as report:
        yield lambda done, total: report(seconds[min(done, len(seconds) - 1)], seconds[-1], f"{done}/{total} questions")


def print_grid(report: dict[str, Any]) -> None:
    """Print the accuracy at each length and depth."""
    grid = report["needle_grid"]
    print_line(f"{report['model']}: needles found at each depth, in per cent; frames: {report['frames']}")
    out.print(grid_table(grid))
    chance = "none" if grid["chance"] is None else f"{grid['chance']:.1%}"
    lost = f", {report['unreadable']:,} not answered" if report["unreadable"] else ""
    print_line(f"by chance {chance}, {report['n']:,} questions answered{lost}")


def grid_table(grid: dict[str, Any]) -> Table:
    """Return the accuracy in per cent: a row for each length, a column for each depth (in per cent) and for all."""
    from ma2mba.plots import duration_words

    table = Table("length", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for depth in grid["depths"]:
        table.add_column(f"{100 * depth:.3g}", justify="right")
    table.add_column("all", justify="right", style="bold")
    table.add_column("asked", justify="right")
    keys = ("lengths_seconds", "accuracy", "accuracy_by_length", "questions_by_length")
    for length, cells, whole, questions in zip(*(grid[key] for key in keys), strict=True):
        table.add_row(duration_words(length), *map(_cell, cells), _cell(whole), f"{questions:,}")
    return table


def _cell(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"

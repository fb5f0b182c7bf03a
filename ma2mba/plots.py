"""Draw charts as PNG files: evaluation reports, memory plans, scaling benchmarks and histograms."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
ACCENT, COLOURS = "#d9480f", ("#4263eb", "#0ca678", "#ae3ec9")
DISTINCT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Colours for up to seven curves, which colour-blind people can tell apart (Okabe and Ito, 2008)."""
HEAT = LinearSegmentedColormap.from_list("heat", ["#fff3bf", "#94d2bd", "#1c7ed6", "#102a6b"])
DARK = 0.55
"""Shares above this one have a dark colour in HEAT: letters on it are white."""
Points = dict[str, list[tuple[int, float]]]
SPAN_FOR_POWERS = 30
"""A logarithmic axis that spans less would show at most one power of ten: it gets round numbers instead."""
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,  # "$" in a name is a letter
}


@contextmanager
def _figure(path: Path, width: float, height: float, dpi: int, wspace: float = 0.02) -> Iterator[Figure]:
    """Give an empty figure of this size in inches, and write it as a PNG at the end of the block."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1, wspace=wspace))
        yield figure
        figure.savefig(path, dpi=dpi, format="png", facecolor="white", metadata={"Software": None})


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draw the demo's report (evaluation.report.build_report): accuracy by frames and by length and depth; losses."""
    with _figure(path, 13.5, 9, 150, wspace=0.06) as figure:
        axes = figure.subplot_mosaic([["frames", "needles"], ["losses", "losses"]], width_ratios=(1, 1.5))
        draw_accuracy(axes["frames"], report["accuracy_by_frames"], report["chance"], report["questions"])
        draw_needles(axes["needles"], report["needle_grid"], "1 frame per second")
        draw_losses(axes["losses"], report["loss_curves"])


def draw_accuracy(axes: Axes, accuracies: Mapping[str, float], chance: float, questions: int) -> None:
    """Draw the needle task's accuracy for each way to sample frames, in the given order; a dashed line is chance."""
    names, values = list(accuracies), list(accuracies.values())
    places = range(len(names))
    axes.axhline(chance, color=FAINT, linestyle=(0, (5, 4)), linewidth=1.4, zorder=1)
    axes.annotate(
        f"chance {100 * chance:.3g}%", (1, chance), (0, -5), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="right", va="top", color=FAINT,
    )  # fmt: skip
    axes.plot(places, values, color=COLOURS[0], linewidth=2.2, marker="o", markersize=7, clip_on=False, zorder=3)
    for place, name, value in zip(places, names, values, strict=True):
        best = name == "1fps"
        if best:
            axes.plot(place, value, marker="o", markersize=11, color=ACCENT, clip_on=False, zorder=4)
        axes.annotate(
            f"{value:.0%}", (place, value), (0, 11), textcoords="offset points", ha="center",
            color=ACCENT if best else INK, fontweight="bold" if best else "normal",
        )  # fmt: skip
    axes.set_xticks(places, [f"{name[:-3]} per second" if name.endswith("fps") else name for name in names])
    axes.set_xlim(-0.4, len(names) - 0.5)
    axes.set_ylim(0, 1.12)
    axes.set_yticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)])
    axes.grid(axis="y", color=GRID, zorder=0)
    axes.set_xlabel("frames per video that the model sees")
    _title(axes, "Finding the needle", f"correct answers to {questions} questions about held-out videos")


def draw_losses(axes: Axes, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw the losses of the stages one after another, raw (thin) and smoothed (thick), on a logarithmic scale.

    A stage may be narrower than its name, so every second name is drawn lower.
    """
    begin = 0.0
    axes.set_yscale("log")
    for (stage, losses), colour, drop in zip(curves.items(), cycle(COLOURS), cycle((-4, -20)), strict=False):
        if not losses["step"]:
            continue
        steps = np.asarray(losses["step"], float) + begin
        axes.plot(steps, losses["loss"], color=colour, alpha=0.25, linewidth=1)
        axes.plot(steps, smooth(losses["loss"]), color=colour, linewidth=2.2)
        if begin:
            axes.axvline(begin, color=GRID, linewidth=1.2, zorder=0)
        label = stage.replace("stage", "stage ").replace("_long", ", long videos").replace("_", ".")
        axes.annotate(
            label, ((begin + steps[-1]) / 2, 1), (0, drop), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", va="top", color=colour, fontweight="bold",
        )  # fmt: skip
        begin = float(steps[-1])
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.12)
    axes.set_xlim(0, max(begin, 1))
    if high / low > SPAN_FOR_POWERS:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color=GRID, zorder=0)
    axes.set_xlabel("optimizer steps")
    _title(axes, "Loss of each stage", "nats per supervised token")


def draw_needle_grid(grid: Mapping[str, Any], frames: str, path: Path) -> None:
    """Draw the heat map of a needle evaluation (evaluation.needle_report.needle_grid). `frames`: how many are seen."""
    rows, columns = len(grid["lengths_seconds"]), len(grid["depths"])
    with _figure(path, max(6.0, 3.0 + 0.62 * columns), 2.4 + 0.55 * rows, 150) as figure:
        draw_needles(figure.subplots(), grid, frames)


def draw_needles(axes: Axes, grid: Mapping[str, Any], frames: str) -> None:
    """Draw the accuracy at each length (rows) and depth (columns) in per cent, with a column for all depths."""
    depths, lengths = grid["depths"], grid["lengths_seconds"]
    shares = np.array([[np.nan if cell is None else cell for cell in row] for row in grid["accuracy"]], float).reshape(
        len(lengths), len(depths)
    )
    means = np.array([np.nan if cell is None else cell for cell in grid["accuracy_by_length"]], float)
    beside = len(depths) + 0.4
    for x, cells in [*enumerate(shares.T), (beside, means)]:
        for y, cell in enumerate(cells):
            colour = HEAT(cell) if np.isfinite(cell) else GRID
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5))
            axes.annotate(f"{100 * cell:.0f}" if np.isfinite(cell) else "-", (x, y), ha="center", va="center",
                          fontweight="bold" if x == beside else "normal",
                          color="white" if np.isfinite(cell) and cell > DARK else INK)  # fmt: skip
    axes.set_xlim(-0.5, beside + 0.5)
    axes.set_ylim(len(lengths) - 0.5, -0.5)
    axes.set_xticks([*range(len(depths)), beside], [*(f"{100 * depth:.3g}" for depth in depths), "all"])
    axes.set_yticks(range(len(lengths)), [duration_words(length) for length in lengths])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("depth of the needle (0: start of the video, 100: its end)")
    axes.set_ylabel("length of the video")
    counts = sorted(set(grid["questions_by_length"]))
    asked = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    chance = "" if grid["chance"] is None else f" (chance {100 * grid['chance']:.3g}%)"
    _title(axes, f"Needles found, in per cent{chance}", f"{asked} questions about each length, {frames}")


def duration_words(seconds: int) -> str:
    """Return a duration as "45 s", "10 min" or "2 h"; the largest unit that it is a whole number of, up to 90 min."""
    if seconds % 60:
        return f"{seconds:,} s"
    return f"{seconds // 3600} h" if seconds > 5400 and seconds % 3600 == 0 else f"{seconds // 60:,} min"


def draw_pictures(
    pictures: Mapping[tuple[int, float], np.ndarray], lengths: Sequence[int], depths: Sequence[float], path: Path
) -> None:
    """Draw one picture with a needle for each length (rows) and depth (columns) that has one."""
    with _figure(path, 1.6 + 0.95 * len(depths), 1.6 + 0.95 * len(lengths), 150) as figure:
        grid = figure.subplots(len(lengths), len(depths), squeeze=False)
        for row, length in zip(grid, lengths, strict=True):
            for axes, depth in zip(row, depths, strict=True):
                if (length, depth) in pictures:
                    axes.imshow(pictures[length, depth])
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_visible(False)
            row[0].set_ylabel(duration_words(length), rotation=0, ha="right", va="center")
        for axes, depth in zip(grid[-1], depths, strict=True):
            axes.set_xlabel(f"{100 * depth:.3g}%")
        figure.suptitle("The first question of each length and depth: the symbol that the model was shown", fontsize=12)


def draw_half_lives(seconds: Mapping[str, np.ndarray], path: Path) -> None:
    """Draw how long each head remembers: `seconds` maps up to seven names to half-lives (layers, heads)."""
    with _figure(path, 9, 5.2, 150) as figure:
        axes = figure.subplots()
        for number, ((name, found), colour) in enumerate(zip(seconds.items(), DISTINCT, strict=False)):
            layers, heads = found.shape
            aside = (number - (len(seconds) - 1) / 2) * 0.8 / len(seconds)
            places = np.repeat(np.arange(1, layers + 1) + aside, heads)
            axes.plot(places, found.flatten(), color=colour, linestyle="", marker="o", alpha=0.7, label=name)
        for mark in (60, 600, 3600):
            axes.axhline(mark, color=FAINT, linestyle=(0, (5, 4)), linewidth=1.2, zorder=0)
            axes.annotate(duration_words(mark), (1, mark), (4, 0), xycoords=("axes fraction", "data"), color=FAINT,
                          textcoords="offset points", va="center")  # fmt: skip
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color=GRID, zorder=0)
        axes.set_xlabel("layer")
        figure.legend(loc="outside lower center", frameon=False)
        _title(
            axes, "How long each head remembers", "half-life of its state on the frames of a quiet video, in seconds"
        )


def smooth(values: Sequence[float], share: float = 0.04) -> np.ndarray:
    """Return the centred mean over about `share` of the points; at both ends the window is cut off."""
    half = max(int(len(values) * share / 2), 1)
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, float))])
    i = np.arange(len(values))
    low, high = np.maximum(i - half, 0), np.minimum(i + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _title(axes: Axes, text: str, below: str) -> None:
    """Write a title above the axes, and a smaller line below the title."""
    axes.annotate(
        text, (0, 1), (0, 26), xycoords="axes fraction", textcoords="offset points", fontsize=14, fontweight="bold"
    )
    axes.annotate(below, (0, 1), (0, 9), xycoords="axes fraction", textcoords="offset points", color=FAINT)


def draw_plan(
    title: str, tokens: Sequence[int], curves: Mapping[str, Sequence[float | None]], limit: float, path: Path
) -> None:
    """Draw predicted device memory (GiB) against sequence length (tokens); None means that no plan fits."""
    with _figure(path, 7.5, 4.8, 150) as figure:
        axes = figure.subplots()
        for (name, memory), colour in zip(curves.items(), COLOURS, strict=False):
            values = [float("nan") if value is None else value for value in memory]
            axes.plot(tokens, values, color=colour, linewidth=2.2, marker="o", markersize=6, label=name)
        axes.axhline(limit, color=ACCENT, linestyle=(0, (5, 4)), linewidth=1.4)
        axes.annotate("usable", (1, limit), (0, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
                      ha="right", va="bottom", color=ACCENT)  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_ylim(0)
        axes.grid(axis="y", color=GRID, zorder=0)
        axes.set_xlabel("tokens")
        axes.legend(frameon=False)
        _title(axes, title, "GiB, predicted")


def draw_scaling(title: str, unit: str, curves: Points, names: Sequence[str], path: Path, note: str) -> None:
    """Draw (tokens, value) points by name. The axes of tokens and of GiB are logarithmic.

    `names`: all names of a set of charts, at most seven. A name has the same colour in all charts of the set.
    """
    with _figure(path, 8.5, 5.0, 140) as figure:
        axes = figure.subplots()
        colours = dict(zip(names, DISTINCT, strict=False))
        for name, points in curves.items():
            tokens, values = zip(*points, strict=True)
            axes.plot(tokens, values, color=colours[name], linewidth=2, marker="o", markersize=7, label=name)
        axes.set_xscale("log", base=2)
        if unit == "GiB":
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        else:
            axes.set_ylim(0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y", color=GRID, zorder=0)
        axes.set_xlabel(f"tokens (2.7B, {note})")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        _title(axes, title, unit)


def draw_histogram(title: str, counts: Mapping[str, int], path: Path) -> None:
    """Draw a histogram of sample lengths: tokens -> number of samples with this many to twice as many tokens."""
    with _figure(path, 7.5, 4.2, 120) as figure:
        axes = figure.subplots()
        places = range(len(counts))
        axes.bar(places, list(counts.values()), color=COLOURS[0], width=0.8, zorder=2)
        for place, count in zip(places, counts.values(), strict=True):
            axes.annotate(f"{count:,}", (place, count), (0, 3), textcoords="offset points", ha="center", va="bottom")
        axes.set_xticks(places, [f"{int(size):,}" for size in counts], rotation=30 if len(counts) > 8 else 0)
        axes.grid(axis="y", color=GRID, zorder=0)
        axes.margins(y=0.12)
        axes.set_xlabel("text and visual tokens, from this number to twice this number")
        _title(axes, title, "samples")


@dataclass(frozen=True)
class Share:
    """The accuracy of a group of `n` questions, its 95% interval and the accuracy of guessing, as shares of 1."""

    accuracy: float
    interval: tuple[float, float] | None
    chance: float
    n: int


NARROWEST = 8.5
"""Inches of the narrowest chart of an evaluation: room for its title."""
LETTERS = 18
"""Letters of a group's name below a bar; beside a row, twice as many."""
PAPER = ("#c5ccd3", "#9aa5b1", "#616e7c")
"""The bars of the paper's models, from the smallest to the largest."""


def draw_bars(
    title: str, below: str, ours: Mapping[str, Share], theirs: Mapping[str, Mapping[str, float]], note: str, path: Path
) -> None:
    """Draw the accuracy of each group, beside the accuracies that other models have there. The note stands below."""
    names, bars = list(ours), len(theirs) + 1
    with _figure(path, max(NARROWEST, 1.2 + 0.75 * bars * len(names)), 4.8, 150) as figure:
        axes, width = figure.subplots(), 0.8 / bars
        for place, (model, shares) in enumerate(theirs.items()):
            known = [(x, shares[name]) for x, name in enumerate(names) if name in shares]
            places = [x + (place - (bars - 1) / 2) * width for x, _ in known]
            heights = [share for _, share in known]
            axes.bar(places, heights, width * 0.92, color=PAPER[place % len(PAPER)], label=model, zorder=2)
            for x, height in zip(places, heights, strict=True):
                _percent(axes, x, height, FAINT)
        for x, share in enumerate(ours.values()):
            at = x + (bars - 1) / 2 * width
            label = "this model" if x == 0 and theirs else None
            axes.bar([at], [share.accuracy], width * 0.92, color=COLOURS[0], label=label, zorder=2)
            _interval(axes, at, share, INK)
            _percent(axes, at, max(share.accuracy, *(share.interval or [0])), COLOURS[0], share.accuracy)
            axes.hlines(share.chance, x - 0.46, x + 0.46, color=ACCENT, linestyle=(0, (4, 3)), linewidth=1.4, zorder=3,
                        label="chance" if x == 0 else "")  # fmt: skip
        axes.set_xticks(range(len(names)), [_cut(name, LETTERS) for name in names])
        _few(axes, len(names))
        _up_to(axes, [*ours.values()], [share for shares in theirs.values() for share in shares.values()])
        axes.set_xlabel(note, color=FAINT, labelpad=8)
        figure.legend(loc="outside lower center", ncols=bars + 1, frameon=False)
        _title(axes, title, below)


def draw_by_length(title: str, below: str, groups: Mapping[str, Share], path: Path) -> None:
    """Draw the accuracy of each length group, shortest videos first, with its interval and the number of questions."""
    with _figure(path, max(NARROWEST, 1.6 + 1.15 * len(groups)), 4.8, 150) as figure:
        axes, places = figure.subplots(), range(len(groups))
        axes.hlines([share.chance for share in groups.values()], [x - 0.4 for x in places], [x + 0.4 for x in places],
                    color=ACCENT, linestyle=(0, (4, 3)), linewidth=1.4, label="chance", zorder=2)  # fmt: skip
        axes.plot(places, [share.accuracy for share in groups.values()], color=COLOURS[0], linewidth=2.2, marker="o",
                  markersize=8, label="this model", zorder=3)  # fmt: skip
        for x, share in enumerate(groups.values()):
            _interval(axes, x, share, COLOURS[0])
            _percent(axes, x, max(share.accuracy, *(share.interval or [0])), COLOURS[0], share.accuracy)
        axes.set_xticks(places, [f"{_cut(name, LETTERS)}\n{share.n:,} questions" for name, share in groups.items()])
        _few(axes, len(groups))
        _up_to(axes, [*groups.values()], [])
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        _title(axes, title, below)


def draw_rows(title: str, below: str, groups: Mapping[str, Share], path: Path) -> None:
    """Draw the accuracy of each group as a row, the first one on top."""
    with _figure(path, 8.5, 1.9 + 0.34 * len(groups), 130) as figure:
        axes, places = figure.subplots(), range(len(groups))
        axes.barh(places, [share.accuracy for share in groups.values()], 0.7, color=COLOURS[0], zorder=2)
        for y, share in enumerate(groups.values()):
            low, high = share.interval or (share.accuracy, share.accuracy)
            axes.plot([low, high], [y, y], color=INK, linewidth=1.4, zorder=4)
            axes.vlines(share.chance, y - 0.4, y + 0.4, color=ACCENT, linewidth=1.8, zorder=3,
                        label="chance" if y == 0 else "")  # fmt: skip
            axes.annotate(f"{share.accuracy:.1%} of {share.n:,}", (max(high, share.accuracy, share.chance), y), (6, 0),
                          textcoords="offset points", va="center", color=INK)  # fmt: skip
        axes.set_yticks(places, [_cut(name, 2 * LETTERS) for name in groups])
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_xlim(0, 1.15)
        axes.set_xticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)])
        axes.grid(axis="x", color=GRID, zorder=0)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        _title(axes, title, below)


def _cut(name: str, letters: int) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _interval(axes: Axes, x: float, share: Share, colour: str) -> None:
    if share.interval:
        low, high = share.interval
        axes.vlines(x, low, high, color=colour, linewidth=1.4, zorder=4)
        axes.plot([x, x], [low, high], color=colour, linestyle="", marker="_", markersize=9, zorder=4)


def _percent(axes: Axes, x: float, height: float, colour: str, value: float | None = None) -> None:
    axes.annotate(f"{100 * (height if value is None else value):.1f}", (x, height), (0, 4), ha="center", va="bottom",
                  textcoords="offset points", color=colour, fontsize=9.5, zorder=5)  # fmt: skip


def _few(axes: Axes, groups: int) -> None:
    """Leave room beside fewer than three groups, so that bars do not become walls."""
    room = max(0.0, 3 - groups) / 2
    axes.set_xlim(-0.6 - room, groups - 0.4 + room)


def _up_to(axes: Axes, ours: Sequence[Share], theirs: Sequence[float]) -> None:
    """Let the vertical axis begin at 0 and end above the highest share, at most just above 100%."""
    highest = max([0.3, *theirs, *(max(share.accuracy, share.chance, *(share.interval or [0])) for share in ours)])
    axes.set_ylim(0, min(1.08, 1.2 * highest))
    ticks = [tick for tick in np.linspace(0, 1, 11 if highest < 0.5 else 6) if tick <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{share:.0%}" for share in ticks])
    axes.grid(axis="y", color=GRID, zorder=0)

"""Means of the scores of groups of answers, with their 95% confidence intervals."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ma2mba.evaluation.answers_file import Record
from ma2mba.evaluation.bootstrap import interval

Means = dict[str, Any]
NAMED = ("short", "medium", "long")
MINUTE, HOUR = 60.0, 3600.0
LENGTHS = (
    (15.0, "under 15 s"),
    (MINUTE, "15 s to 1 min"),
    (3 * MINUTE, "1 to 3 min"),
    (10 * MINUTE, "3 to 10 min"),
    (30 * MINUTE, "10 to 30 min"),
    (HOUR, "30 to 60 min"),
    (2 * HOUR, "1 to 2 h"),
    (math.inf, "2 h and longer"),
)
"""The length groups of questions whose benchmark names none: the end of each in seconds, and its name."""


def means(records: Sequence[Record]) -> Means:
    """Return the means of records, and how many questions have none.

    n            answered questions: the means are over them
    accuracy     mean score, None if no question was answered
    ci95         its 95% confidence interval, a bootstrap over videos; None for fewer than two videos
    chance       mean probability that a guess among the options is right
    videos       number of videos that were watched
    unparsed     answers that name no option: they count as wrong
    empty        answers without a character: they count as wrong
    unreadable   questions whose medium could not be used: they do not count
    accuracy_if_unreadable_wrong  the mean score if these questions counted as wrong, as some tools count them
    """
    answered = [record for record in records if "error" not in record]
    scores, videos = [record["score"] for record in answered], [record["video"] for record in answered]
    return {
        "n": len(answered),
        "accuracy": mean(scores),
        "ci95": _listed(interval(scores, videos)),
        "chance": mean([record["chance"] for record in answered]),
        "videos": len(set(videos)),
        "unparsed": sum(record["parser"] == "letter" and record["choice"] is None for record in answered),
        "empty": sum(record["prediction"] == "" for record in answered),
        "unreadable": len(records) - len(answered),
        "accuracy_if_unreadable_wrong": mean([*scores, *[0.0] * (len(records) - len(answered))]),
    }


def _listed(bounds: tuple[float, float] | None) -> list[float] | None:
    """Return an interval as JSON holds it."""
    return list(bounds) if bounds else None


def mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def mean_of_tasks(records: Sequence[Record]) -> Means:
    """Return the mean over tasks of each task's accuracy, and its interval: how some benchmarks average."""
    answered = [record for record in records if "error" not in record]
    tasks = grouped(answered, lambda record: record["task"])
    accuracies = [mean([record["score"] for record in group]) for group in tasks.values()]
    scores = [record["score"] for record in answered]
    ci95 = _listed(interval(scores, [r["video"] for r in answered], [r["task"] for r in answered]))
    return {"accuracy": mean([accuracy for accuracy in accuracies if accuracy is not None]), "ci95": ci95}


def grouped(records: Iterable[Record], key: Callable[[Record], str]) -> dict[str, list[Record]]:
    """Return the records of each key, in the order in which the keys first appear."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def by_length(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records of each length group, shortest videos first.

    The groups are those that the benchmark names; otherwise LENGTHS, of the seconds that were watched. Without either,
    a question whose medium could not be used has no length and is left out.
    """
    if any(record["duration_group"] for record in records):
        groups = grouped(records, lambda record: record["duration_group"] or "none")
        return dict(sorted(groups.items(), key=lambda pair: _length(*pair)))
    known = [record for record in records if "video_seconds" in record]
    groups = grouped(known, lambda record: next(name for end, name in LENGTHS if record["video_seconds"] < end))
    return {name: groups[name] for _, name in LENGTHS if name in groups}


def _length(name: str, records: Sequence[Mapping[str, Any]]) -> float:
    """Return what a length group is sorted by: its name if that tells, else the mean of the seconds watched."""
    if name in NAMED:
        return NAMED.index(name)
    if name.isdecimal():
        return float(name)
    seconds = mean([record["video_seconds"] for record in records if "video_seconds" in record])
    return math.inf if seconds is None else seconds

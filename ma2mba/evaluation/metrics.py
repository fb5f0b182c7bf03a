"""The accuracy of a list of answers."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any


def summarise(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return n and the means accuracy and chance of records (`task`, `correct`, `chance`), in all and per task.

    Records with an `error` were not answered and do not count. The means are None where no question was answered.
    """
    by_task: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        by_task[record["task"]].append(record)
    everything = [record for group in by_task.values() for record in group]
    return {**_means(everything), "tasks": {task: _means(group) for task, group in sorted(by_task.items())}}


def _means(records: list[Mapping[str, Any]]) -> dict[str, Any]:
    answered = [record for record in records if "error" not in record]
    return {"n": len(answered), "accuracy": _mean(answered, "correct"), "chance": _mean(answered, "chance")}


def _mean(records: list[Mapping[str, Any]], key: str) -> float | None:
    return sum(float(record[key]) for record in records) / len(records) if records else None

"""Where the seconds of a start go: from the command to the end of the first step."""

import os
import time
from collections.abc import Mapping

import psutil

BEGAN = "MA2MBA_BEGAN"
"""The variable with the time, in seconds since the epoch, at which the command began that starts ranks."""


class StartClock:
    """Notes when the phases of a start begin. Times are seconds since the epoch: several processes take part."""

    def __init__(self) -> None:
        self._begun: list[tuple[float, str]] = []

    def enter(self, phase: str, at: float | None = None) -> None:
        """Begin a phase, now or at the time `at`. A phase may begin several times: its seconds are added."""
        self._begun.append((time.time() if at is None else at, phase))

    def join(self, other: "StartClock") -> None:
        """Add the phases of another clock."""
        self._begun += other._begun

    def finish(self) -> dict[str, float]:
        """Return the seconds of every phase up to now, in the order in which they first began, and their `total`."""
        begun = sorted(self._begun, key=lambda entry: entry[0])
        ends = [*(at for at, _ in begun[1:]), time.time()]
        seconds = dict.fromkeys((phase for _, phase in begun), 0.0)
        for (at, phase), end in zip(begun, ends, strict=True):
            seconds[phase] += max(0.0, end - at)
        return {phase: round(spent, 2) for phase, spent in seconds.items()} | {"total": round(sum(seconds.values()), 2)}


def describe(seconds: Mapping[str, float]) -> str:
    """Return the result of `finish` as a line of the log."""
    parts = ", ".join(f"{phase} {spent:.1f}" for phase, spent in seconds.items() if phase != "total")
    return f"the first step was done {seconds['total']:.1f} s after the command began: {parts}"


def announced(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment (default: this process's) with which ranks know when the command of this process began."""
    return {**(os.environ if environment is None else environment), BEGAN: repr(_process_began())}


def command_began(environment: Mapping[str, str] = os.environ) -> float:
    """Return when the command began that started this rank, or when this process began if nobody says."""
    own = _process_began()
    try:
        told = float(environment[BEGAN])
    except (KeyError, ValueError):
        return own
    return told if told < own else own


def _process_began() -> float:
    return psutil.Process().create_time()

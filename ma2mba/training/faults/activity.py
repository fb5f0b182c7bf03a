"""What this process is doing, for whoever has to tell: the step, the phase, the samples, and since when."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any, Literal, TypeVar

from ma2mba.data.batch import Batch

T = TypeVar("T")
Phase = Literal["starting", "loading", "forward", "backward", "optimizer", "saving"]
REMEMBERED = 50
"""Steps that the usual pace is taken from."""


class Activity:
    """Kept up by the training thread, read by others at any time. A GPU may be behind what its process is doing.

    step        number of the step in work (the first is 1), 0 before it
    micro_batch sample ids, rows, padded tokens of a row and frames of the micro-batch in work
    tokens      padded tokens that the busiest rank computes on in this step
    """

    def __init__(self) -> None:
        self.step, self.tokens = 0, 0
        self.phase: Phase = "starting"
        self.sample_ids: list[str] = []
        self.rows, self.row_tokens, self.frames = 0, 0, 0
        self._since = self._phase_since = time.monotonic()
        self._paces: deque[float] = deque(maxlen=REMEMBERED)

    @property
    def seconds(self) -> float:
        """Since this step began, or the start, or the save."""
        return time.monotonic() - self._since

    @property
    def paces(self) -> int:
        """How many steps the usual pace is taken from."""
        return len(self._paces)

    @property
    def usual_seconds(self) -> float:
        """What a step of so many tokens has taken, by the median of the last steps; 0 when none has ended."""
        return median(self._paces) * self.tokens if self._paces else 0.0

    def begin_step(self, step: int, tokens: int) -> None:
        self._begin()
        self.step, self.tokens = step, tokens
        self.enter("loading")

    def begin_saving(self) -> None:
        self._begin()
        self.tokens, self.sample_ids = 0, []
        self.enter("saving")

    def enter(self, phase: Phase) -> None:
        self._phase_since, self.phase = time.monotonic(), phase

    def micro_batches(self, batches: Iterable[tuple[Batch, T]]) -> Iterator[tuple[Batch, T]]:
        """The batches and what comes with them, each said to be loading until it is there."""
        coming = iter(batches)
        while True:
            self.enter("loading")
            pair = next(coming, None)
            if pair is None:
                self.enter("optimizer")
                return
            batch = pair[0]
            self.sample_ids = batch.sample_ids
            self.rows, self.row_tokens = batch.ids_BS.shape
            self.frames = len(batch.frames)
            yield pair

    def facts(self) -> dict[str, Any]:
        """For a report in JSON."""
        return {
            "step": self.step,
            "phase": self.phase,
            "seconds_in_step": round(self.seconds, 1),
            "seconds_in_phase": round(time.monotonic() - self._phase_since, 1),
            "sample_ids": self.sample_ids,
        }

    def _begin(self) -> None:
        now = time.monotonic()
        if self.tokens:
            self._paces.append((now - self._since) / self.tokens)
        self._since = now


def in_words(facts: dict[str, Any]) -> str:
    """One line of what `Activity.facts` says."""
    samples = f", samples {', '.join(facts['sample_ids'])}" if facts["sample_ids"] else ""
    return f"step {facts['step']}, {facts['phase']} for {facts['seconds_in_phase']:.0f} s{samples}"

"""Track what this process is doing: the step, the phase, the samples, and for how long."""

import time
from collections import deque
from statistics import median
from typing import Any, Literal

from ma2mba.data.batch import Batch

Phase = Literal["starting", "loading", "forward", "backward", "optimizer", "saving"]
TIMED_STEPS = 50
"""How many of the latest steps the usual duration of a step is computed from."""


class Activity:
    """The current activity. The training thread updates it, other threads read it. A GPU may lag behind it.

    step        number of the current step, from 1; 0 before the first step
    tokens      padded tokens that the busiest rank computes on in this step; 0 outside steps
    sample_ids, rows, row_tokens, frames
                sample ids, rows, padded tokens per row and frames of the current micro-batch
    """

    def __init__(self) -> None:
        self.step, self.tokens = 0, 0
        self.phase: Phase = "starting"
        self.sample_ids: list[str] = []
        self.rows, self.row_tokens, self.frames = 0, 0, 0
        self._since = self._phase_since = time.monotonic()
        self._seconds_per_token: deque[float] = deque(maxlen=TIMED_STEPS)

    @property
    def seconds(self) -> float:
        """Seconds since the current step, start or save began."""
        return time.monotonic() - self._since

    @property
    def timed_steps(self) -> int:
        """How many steps `usual_seconds` is computed from."""
        return len(self._seconds_per_token)

    @property
    def usual_seconds(self) -> float:
        """The usual duration of a step of `tokens` tokens: the median of the latest steps; 0 before the first ends."""
        return median(self._seconds_per_token) * self.tokens if self._seconds_per_token else 0.0

    def begin_step(self, step: int, tokens: int) -> None:
        """Begin step number `step`, in which the busiest rank computes on `tokens` padded tokens."""
        self._begin()
        self.step, self.tokens = step, tokens
        self.enter("loading")

    def begin_saving(self) -> None:
        """Begin to write a checkpoint."""
        self._begin()
        self.tokens, self.sample_ids = 0, []
        self.enter("saving")

    def enter(self, phase: Phase) -> None:
        """Begin a phase of the current step."""
        self._phase_since, self.phase = time.monotonic(), phase

    def begin_micro_batch(self, batch: Batch) -> None:
        """Note the micro-batch whose forward begins."""
        self.sample_ids = batch.sample_ids
        self.rows, self.row_tokens = batch.ids_BS.shape
        self.frames = len(batch.frames)
        self.enter("forward")

    def end_micro_batches(self) -> None:
        """Note that what follows in this step concerns all its samples."""
        self.sample_ids = []

    def facts(self) -> dict[str, Any]:
        """Return the current activity as values for a JSON report."""
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
            self._seconds_per_token.append((now - self._since) / self.tokens)
        self._since = now


def describe_activity(facts: dict[str, Any]) -> str:
    """Return `Activity.facts` as one line of text."""
    samples = f", samples {', '.join(facts['sample_ids'])}" if facts["sample_ids"] else ""
    return f"step {facts['step']}, {facts['phase']} for {facts['seconds_in_phase']:.0f} s{samples}"

"""Prepare batches in background threads while the model trains."""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ma2mba.data.batch import Batch, collate
from ma2mba.data.dataset import Dataset
from ma2mba.data.sampler import Position, Sampler, StepPlan

PRIMED_FRAMES = 32
"""How many frames of a long sample are ready with its batch. The others are read while the model uses the batch."""

READER_NICENESS = 10
"""Niceness of the reader threads. A process with a higher niceness keeps it: only root may lower it."""


@dataclass(frozen=True)
class LoadedStep:
    """A step's plan, and this rank's micro-batches. Consume the micro-batches in order."""

    plan: StepPlan
    batches: Iterator[Batch]


class Loader:
    """Yields this rank's steps, from position `at` on and without end. Use as a context manager, or call `close`.

    Background threads keep `prefetch` batches ready. The number of threads changes only the speed. An error in a
    thread is raised when the next batch is requested, and again at every later request.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler,
        tokens_per_frame: int,
        *,
        rank: int = 0,
        at: Position = Position(),
        prefetch: int = 4,
        threads: int = 2,
        primed_frames: int = PRIMED_FRAMES,
    ):
        self._dataset, self._tokens_per_frame = dataset, tokens_per_frame
        self._sampler, self._rank, self._at, self._primed_frames = sampler, rank, at, primed_frames
        self._remaining = (micro for plan in sampler.plans(at) for micro in plan.micro_batches[rank])
        self._pool = ThreadPoolExecutor(threads, "ma2mba-loader", initializer=_lower_priority)
        self._ready: deque[Future[Batch]] = deque(self._begin() for _ in range(max(1, prefetch)))
        self._waited = 0.0
        self._current: Batch | None = None
        self._error: BaseException | None = None

    @property
    def waited(self) -> float:
        """How many seconds training has waited for data so far, including the frames of long samples."""
        return self._waited + (self._current.frames.waited if self._current else 0.0)

    def __iter__(self) -> Iterator[LoadedStep]:
        for plan in self._sampler.plans(self._at):
            yield LoadedStep(plan, (self._take() for _ in plan.micro_batches[self._rank]))

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the background threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self) -> Future[Batch]:
        return self._pool.submit(self._make, next(self._remaining))

    def _make(self, indices: list[int]) -> Batch:
        batch = collate([self._dataset[i] for i in indices], self._tokens_per_frame)
        batch.frames.prime(self._primed_frames)
        return batch

    def _take(self) -> Batch:
        if self._error:
            raise self._error
        self._waited, self._current = self.waited, None
        started = time.perf_counter()
        try:
            batch = self._ready.popleft().result()
        except BaseException as error:
            self._error = error
            raise
        self._waited += time.perf_counter() - started
        self._current = batch
        self._ready.append(self._begin())
        return batch


def _lower_priority() -> None:
    """Give training, and the frames that it requests now, priority over batches that are needed later."""
    if sys.platform == "linux":  # only there does a thread have its own priority
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(READER_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))

"""Batches prepared in a background thread while the model trains."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

from ma2mba.data.batch import Batch, collate
from ma2mba.data.dataset import Dataset
from ma2mba.data.sampler import Position, Sampler, StepPlan

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class LoadedStep:
    """A step's plan and this rank's micro-batches, to be consumed in order."""

    plan: StepPlan
    batches: Iterator[Batch]


class Loader:
    """This rank's steps from a position on, without end; at most `prefetch` batches are held ready.

    `waited` counts the seconds that the training process has stood still for data. An error in the background is raised
    where the next batch is asked for.
    Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler,
        tokens_per_frame: int,
        *,
        rank: int = 0,
        at: Position = Position(),
        prefetch: int = 2,
    ):
        self.waited = 0.0
        self._make: Callable[[list[int]], Batch] = lambda indices: collate(
            [dataset[i] for i in indices], tokens_per_frame
        )
        self._sampler, self._rank, self._at = sampler, rank, at
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(max(1, prefetch))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ma2mba-loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[LoadedStep]:
        for plan in self._sampler.plans(self._at):
            yield LoadedStep(plan, (self._take() for _ in plan.micro_batches[self._rank]))

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the background thread."""
        self._closed.set()
        self._thread.join()

    def _take(self) -> Batch:
        started = time.perf_counter()
        item = self._ready.get()
        self.waited += time.perf_counter() - started
        if isinstance(item, BaseException):
            self._ready.put(item)  # a later call hears of it too: nothing more will come
            raise item
        return item

    def _work(self) -> None:
        try:
            for plan in self._sampler.plans(self._at):
                for indices in plan.micro_batches[self._rank]:
                    if self._closed.is_set():
                        return
                    self._put(self._make(indices))
        except BaseException as error:  # whatever it is, the training process must hear of it
            self._put(error)

    def _put(self, item: Batch | BaseException) -> None:
        while not self._closed.is_set():
            try:
                return self._ready.put(item, timeout=POLL_SECONDS)
            except queue.Full:
                continue

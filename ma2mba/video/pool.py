"""Run tasks in watched worker processes: a decoder that hangs or crashes costs one item, not the whole run.

A task is a list of items, for example videos to decode. A hang in native code cannot be interrupted from within its
process. A worker that reports nothing for STALL seconds is therefore killed, the item that it worked on is given up by
name, and its task starts again without that item. A crash is handled in the same way.

When no item can be the cause (before the first item of a task, or after the last), a worker may take longer, and a
crash costs no item: the task starts again if its worker had finished another task before, else the crash is an error.
So each restart gives up one more item or follows a finished task, and the run cannot restart forever.

The memory of each worker is limited. A worker is replaced after RECYCLE items, so that leaks in decoders do not add up.
"""

import contextlib
import multiprocessing
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from ma2mba.errors import UserError
from ma2mba.video.memory import limit_memory

STALL = 300.0
"""Seconds without a sign of life after which an item is given up."""
STARTING = 120.0
"""Seconds that a worker may take before its first item: a busy machine starts processes slowly."""
FINISHING = 1800.0
"""Seconds that a worker may take after its last item, for example to write gigabytes and read them back."""
RECYCLE = 500
"""Items after which a worker is replaced, once its task is finished."""
BEAT_EVERY = 1.0
"""Seconds between two signs of life."""
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


@dataclass(frozen=True)
class Task:
    """The items that one call of the work processes in order; `given_up` maps the index of an item to the reason."""

    number: int
    items: Sequence[Any]
    given_up: dict[int, str] = field(default_factory=dict)


class Work(Protocol):
    """What a worker does with a task. It is pickled and sent to each worker."""

    def __call__(self, task: Task, begin: Callable[[int], None], beat: Callable[[], None]) -> Any:
        """Process the items of a task without those in `task.given_up`, and return a picklable result.

        Call `begin(i)` before item i, and `begin(len(task.items))` after the last item. Call `beat()` often in between.
        """


Progress = Callable[[int], None]
"""Called with the number of newly finished items; with a negative number when a task starts again."""
OnResult = Callable[[Task, Any], None]
"""Called once for each finished task, with the result of the work."""


class _Worker:
    """A process, the parent's end of its pipe, and the task that it works on."""

    def __init__(self, work: Work, memory: int):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, work, memory), daemon=True)
        self.process.start()
        theirs.close()
        self.task: Task | None = None
        self.item, self.begun = 0, False
        self.heard = time.monotonic()
        self.items_given = 0

    def give(self, task: Task) -> None:
        """Send a task. If the worker is dead, the next read from its pipe shows it."""
        self.task, self.item, self.begun = task, 0, False
        self.heard = time.monotonic()
        self.items_given += len(task.items)
        with contextlib.suppress(ConnectionError):
            self.pipe.send(task)

    def suspect(self) -> int | None:
        """Return the index of the item that causes a stall or a crash now; None if no item can be the cause."""
        assert self.task is not None
        at_an_item = self.begun and self.item < len(self.task.items) and self.item not in self.task.given_up
        return self.item if at_an_item else None

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def run_tasks(
    work: Work,
    tasks: list[Task],
    workers: int,
    memory: int,
    progress: Progress,
    on_result: OnResult,
    stall: float = STALL,
) -> None:
    """Run all tasks in `workers` processes; each may use `memory` bytes beyond what it holds at its start.

    A UserError that the work raises is raised here, an OSError too (without its errno). Raise UserError if a worker is
    killed from outside, or if it takes too long to start or to finish a task.
    """
    waiting = deque(tasks)
    pool = [_Worker(work, memory) for _ in range(min(workers, len(tasks)))]
    try:
        for worker in pool:
            worker.give(waiting.popleft())
        while any(worker.task for worker in pool):
            ready = wait([worker.pipe for worker in pool if worker.task], timeout=min(1.0, stall / 4))
            for worker in [worker for worker in pool if worker.task]:
                if worker.pipe in ready:
                    retry = _hear(worker, progress, on_result)
                elif _stalled(worker, stall):
                    retry = _give_up(worker, f"the decoder made no progress for {stall:.0f} s", progress)
                else:
                    continue
                if retry:
                    waiting.appendleft(retry)
                    pool[pool.index(worker)] = worker = _Worker(work, memory)
                if not worker.task and waiting:
                    if worker.items_given >= RECYCLE:
                        worker.stop()
                        pool[pool.index(worker)] = worker = _Worker(work, memory)
                    worker.give(waiting.popleft())
    finally:
        for worker in pool:
            worker.stop()


def _stalled(worker: _Worker, stall: float) -> bool:
    """Return True when the worker's item exceeds its time limit. Raise UserError when another stage does."""
    silent = time.monotonic() - worker.heard
    if worker.suspect() is not None:
        return silent > stall
    limit, what = (FINISHING, "finish its task") if worker.begun else (STARTING, "start")
    if silent > limit:
        raise UserError(f"a worker did not {what} within {limit:.0f} s. Run the same command again with fewer workers")
    return False


def _hear(worker: _Worker, progress: Progress, on_result: OnResult) -> Task | None:
    """Handle one message from a worker. Return the task that must start again if the worker has crashed."""
    assert worker.task is not None
    worker.heard = time.monotonic()
    try:
        kind, value = worker.pipe.recv()
    except (EOFError, ConnectionError):
        kind, value = "dead", None
    if kind == "dead":
        return _retry_after_crash(worker, progress)
    if kind == "item":
        progress(value - worker.item)
        worker.item, worker.begun = value, True
    elif kind == "done":
        on_result(worker.task, value)
        progress(len(worker.task.items) - worker.item)
        worker.task = None
    elif kind == "error":
        raise value
    elif kind == "failed":
        raise RuntimeError(f"a worker failed:\n{value}")
    return None


def _retry_after_crash(worker: _Worker, progress: Progress) -> Task:
    """Return the task of a dead worker, to start again. Raise if its death is not a crash that an item may cause."""
    assert worker.task is not None
    worker.process.join()
    code = worker.process.exitcode or 0
    if -code in (signal.SIGKILL, signal.SIGTERM):
        raise UserError(
            f"a worker was killed ({signal.Signals(-code).name}), perhaps because the machine ran out of memory. "
            "Run the same command again with fewer workers or less memory for each"
        )
    if -code not in CRASHES:
        raise RuntimeError(f"a worker ended with exit code {code}")
    name = signal.Signals(-code).name
    finished_another = worker.items_given > len(worker.task.items)
    if worker.suspect() is None and not finished_another:
        raise RuntimeError(f"a worker crashed ({name}) {'after its last' if worker.begun else 'before its first'} item")
    return _give_up(worker, f"the decoder crashed ({name})", progress)


def _give_up(worker: _Worker, reason: str, progress: Progress) -> Task:
    """Stop a worker. Return its task, to start again without the item that the worker was at."""
    assert worker.task is not None
    suspect = worker.suspect()
    worker.stop()
    progress(-worker.item)
    given_up = {} if suspect is None else {suspect: reason}
    return replace(worker.task, given_up=worker.task.given_up | given_up)


def _work(pipe: Connection, work: Work, memory: int) -> None:
    """Run in the worker process: process tasks until the pipe closes, which also happens when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit_memory(memory)
    pipe.send(("started", None))
    last = 0.0

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last >= BEAT_EVERY:
            last = time.monotonic()
            pipe.send(("beat", None))

    while True:
        try:
            task = pipe.recv()
            result = work(task, lambda i: pipe.send(("item", i)), beat)
            pipe.send(("done", result))
        except (EOFError, ConnectionError):
            return
        except UserError as error:
            pipe.send(("error", error))
            return
        except OSError as error:  # sent as text: errors of native libraries cannot always be pickled
            pipe.send(("error", OSError(str(error))))
            return
        except Exception:
            pipe.send(("failed", traceback.format_exc()))
            return

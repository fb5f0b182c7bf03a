"""Run tasks in watched worker processes: a decoder that hangs or crashes costs one item, not the whole run.

A task is a list of items, for example videos to decode. A hang in native code cannot be interrupted from within its
process. A worker that reports nothing for STALL seconds is therefore killed, the item that it worked on is given up by
name, and its task starts again without that item. A crash is handled in the same way, and so is a process that the
decoder ends.

When no item can be the cause (before the first item of a task, or after the last), a worker may take longer, and a
crash costs no item: the task starts again if its worker had finished another task before, else the crash is an error.
So each restart gives up one more item or follows a finished task, and the run cannot restart forever.

The memory of each worker is limited. A worker is replaced after RECYCLE items, so that leaks in decoders do not add up.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, NamedTuple, Protocol

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

_START = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[1]))
sys.path[:] = pipe.recv()
run, *rest = pipe.recv()
run(pipe, *rest)
"""
"""The program of a worker. Unlike a process of multiprocessing, it does not run the caller's main file again: that file
may import PyTorch, or start the work without `if __name__ == "__main__"`. It runs with -P: by default, Python would
import modules from the current folder."""


@dataclass(frozen=True)
class Task:
    """The items that one call of the work processes in order; `given_up` maps the index of an item to the reason."""

    number: int
    items: Sequence[Any]
    given_up: dict[int, str] = field(default_factory=dict)


class Beat(Protocol):
    """What the work calls often."""

    def __call__(self, block: Any = None) -> None:
        """Give a sign of life. Send `block`, a piece of the result, to the parent; wait while the parent is busy."""


class Work(Protocol):
    """What a worker does with a task. It is pickled and sent to each worker, which must be able to import it."""

    def __call__(self, task: Task, begin: Callable[[int], None], beat: Beat) -> Any:
        """Process the items of a task without those in `task.given_up`, and return a picklable result.

        Call `begin(i)` before item i, and `begin(len(task.items))` after the last item. Call `beat()` often in between.
        """


Progress = Callable[[int], None]
"""Called with the number of newly finished items; with a negative number when a task starts again."""
OnResult = Callable[[Task, Any], None]
"""Called once for each finished task, with the result of the work."""


class Event(NamedTuple):
    """What happened to a task.

    "block": the work sent `value`, a piece of its result; a task that starts again sends its blocks again. "result":
    the work returned `value`. "progress": `value` more items are finished; negative when a task starts again. "beat":
    nothing of these for a second at most, so that whoever listens is never kept waiting.
    """

    kind: Literal["block", "result", "progress", "beat"]
    task: Task | None = None
    value: Any = None


class _Worker:
    """A process, the parent's end of its pipe, and the task that it works on."""

    def __init__(self, work: Work, memory: int, fds: Sequence[int]):
        self.pipe, theirs = multiprocessing.Pipe()
        with theirs:
            command = [sys.executable, "-P", "-c", _START, str(theirs.fileno())]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno(), *fds], stdin=subprocess.DEVNULL)
        with contextlib.suppress(ConnectionError):
            self.pipe.send([path or os.getcwd() for path in sys.path])
            self.pipe.send((_work, work, memory))
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
        self.task = None
        self.pipe.close()
        self.process.kill()
        self.process.wait()


class Pool:
    """Watched workers that start at once, and stay between calls of `run` until `close`. A context manager.

    Each worker may use `memory` bytes beyond what it holds at its start, and inherits the file descriptors `fds`.
    """

    def __init__(self, work: Work, workers: int, memory: int, fds: Sequence[int] = ()):
        self._work, self._memory, self._fds = work, memory, fds
        self._workers = [_Worker(work, memory, fds) for _ in range(workers)]

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all workers. A later `run` starts new workers."""
        for worker in self._workers:
            worker.stop()

    def run(
        self, tasks: list[Task], on_result: OnResult, progress: Progress = lambda _: None, stall: float = STALL
    ) -> None:
        """Run all tasks. While a callback runs, a worker that has more to send waits. Raises what `events` raises."""
        with contextlib.closing(self.events(deque(tasks), stall)) as events:
            for kind, task, value in events:
                if kind == "result":
                    assert task is not None
                    on_result(task, value)
                elif kind == "progress":
                    progress(value)

    def grow(self, workers: int) -> None:
        """Start more workers, up to this number in all."""
        self._workers += [_Worker(self._work, self._memory, self._fds) for _ in range(workers - len(self._workers))]

    def events(
        self, tasks: deque[Task], stall: float = STALL, allowed: Callable[[Task], bool] = lambda _: True
    ) -> Generator[Event, None, None]:
        """Start the first tasks at once, and yield what happens until all tasks are finished.

        Tasks are removed from `tasks` as they start, and may be added meanwhile. A task waits until it is `allowed`.
        Until the caller asks for the next event, a worker that has more to send waits: nothing is queued here. Closing
        the generator kills the workers. A UserError that the work raises is raised here, an OSError too (without its
        errno). Raise UserError if a worker is killed from outside, or takes too long to start or to finish a task.
        """
        for place in range(min(len(tasks), len(self._workers))):
            self._give(place, tasks.popleft())
        return self._listen(tasks, stall, allowed)

    def _listen(
        self, waiting: deque[Task], stall: float, allowed: Callable[[Task], bool]
    ) -> Generator[Event, None, None]:
        try:
            while waiting or any(worker.task for worker in self._workers):
                ready = wait([worker.pipe for worker in self._workers if worker.task], timeout=min(1.0, stall / 4))
                for place, worker in enumerate(self._workers):
                    retry = None
                    if worker.task and worker.pipe.poll():
                        retry = yield from _hear(worker)
                    elif worker.task and _stalled(worker, stall):
                        retry = yield from _give_up(worker, f"the decoder made no progress for {stall:.0f} s")
                    if retry:
                        waiting.appendleft(retry)
                    if not worker.task and waiting and allowed(waiting[0]):
                        self._give(place, waiting.popleft())
                if not ready:
                    yield Event("beat")
        except BaseException:
            self.close()
            raise

    def _give(self, place: int, task: Task) -> None:
        """Give a task to a worker. If the worker is dead or has processed RECYCLE items, start another first."""
        worker = self._workers[place]
        if worker.items_given >= RECYCLE or worker.process.poll() is not None:
            worker.stop()
            worker = self._workers[place] = _Worker(self._work, self._memory, self._fds)
        worker.give(task)


def run_tasks(
    work: Work,
    tasks: list[Task],
    workers: int,
    memory: int,
    progress: Progress,
    on_result: OnResult,
    stall: float = STALL,
) -> None:
    """Run all tasks in at most `workers` processes that end afterwards. See `Pool` for the rest."""
    with Pool(work, min(workers, len(tasks)), memory) as pool:
        pool.run(tasks, on_result, progress, stall=stall)


def _stalled(worker: _Worker, stall: float) -> bool:
    """Return True when the worker's item exceeds its time limit. Raise UserError when another stage does."""
    silent = time.monotonic() - worker.heard
    if worker.suspect() is not None:
        return silent > stall
    limit, what = (FINISHING, "finish its task") if worker.begun else (STARTING, "start")
    if silent > limit:
        raise UserError(f"a worker did not {what} within {limit:.0f} s. Run the same command again with fewer workers")
    return False


def _hear(worker: _Worker) -> Generator[Event, None, Task | None]:
    """Handle one message from a worker. Return the task that must start again if the worker has crashed."""
    task = worker.task
    assert task is not None
    try:
        kind, value = worker.pipe.recv()
    except (EOFError, ConnectionError):
        kind, value = "dead", None
    if kind == "dead":
        return (yield from _retry_after_crash(worker))
    if kind == "item":
        finished, worker.item, worker.begun = value - worker.item, value, True
        yield Event("progress", task, finished)
    elif kind == "block":
        yield Event("block", task, value)
    elif kind == "done":
        yield Event("result", task, value)
        yield Event("progress", task, len(task.items) - worker.item)
        worker.task = None
    elif kind == "error":
        raise value
    elif kind == "failed":
        raise RuntimeError(f"a worker failed:\n{value}")
    else:
        yield Event("beat")
    worker.heard = time.monotonic()  # after the yield: while the event was in use, the worker may have waited
    return None


def _retry_after_crash(worker: _Worker) -> Generator[Event, None, Task]:
    """Return the task of a dead worker, to start again. Raise if its death is not a crash that an item may cause."""
    assert worker.task is not None
    code = worker.process.wait()
    name = _ending(code)
    if -code in (signal.SIGKILL, signal.SIGTERM):
        raise UserError(
            f"a worker was killed ({name}), perhaps because the machine ran out of memory. "
            "Run the same command again with more free memory, or with fewer workers"
        )
    finished_another = worker.items_given > len(worker.task.items)
    if worker.suspect() is None and not finished_another:
        raise RuntimeError(f"a worker crashed ({name}) {'after its last' if worker.begun else 'before its first'} item")
    return (yield from _give_up(worker, f"the decoder crashed ({name})"))


def _ending(code: int) -> str:
    """Return in words how a process with this exit code ended: the name of a signal, or "exit code 1"."""
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"


def _give_up(worker: _Worker, reason: str) -> Generator[Event, None, Task]:
    """Stop a worker. Return its task, to start again without the item that the worker was at."""
    assert worker.task is not None
    task, suspect = worker.task, worker.suspect()
    worker.stop()
    yield Event("progress", task, -worker.item)
    given_up = {} if suspect is None else {suspect: reason}
    return replace(task, given_up=task.given_up | given_up)


def _silence_libraries() -> None:
    """Keep what libraries in C write about a file off the terminal: only Python writes on this process's stderr."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def _work(pipe: Connection, work: Work, memory: int) -> None:
    """Run in the worker process: process tasks until the pipe closes, which also happens when the parent dies."""
    _silence_libraries()
    limit_memory(memory)
    pipe.send(("started", None))
    last = 0.0

    def beat(block: Any = None) -> None:
        nonlocal last
        if block is not None or time.monotonic() - last >= BEAT_EVERY:
            pipe.send(("beat", None) if block is None else ("block", block))
            last = time.monotonic()

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

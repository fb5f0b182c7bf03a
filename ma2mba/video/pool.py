"""Processes that build parts, watched: a decoder that hangs or crashes costs its clip, not the build.

A hang in native code cannot be interrupted from within its process, so a worker that reports nothing for STALL seconds
is killed, the clip it was at is given up by name, and its part starts again. Where no clip can be to blame (before the
first of a part, after the last) there is more patience, and a crash costs no clip: the part starts again if its worker
had finished another, else it is an error. So each new start gives up one clip more or follows a finished part.
Memory is limited in each worker, and a worker makes room for a fresh one now and then, so that what decoders leak does
not add up.
"""

import contextlib
import multiprocessing
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from ma2mba.errors import UserError
from ma2mba.video.limits import limit_memory

STALL = 300.0
STARTING = 120.0
"""Seconds that a worker may take to begin its first clip, on a machine that does much else."""
FINISHING = 1800.0
"""Seconds that a worker may take after its last clip to write out the part: it syncs and re-reads gigabytes."""
RECYCLE = 500
"""Clips after which a worker is replaced, once its part is done."""
BEAT_EVERY = 1.0
"""Seconds between two signs of life."""
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
Task = tuple[int, Sequence[Any], dict[int, str]]
"""Part number, its clips, clips given up: index -> reason."""


class BuildPart(Protocol):
    """What a worker does with a task; it is pickled to the worker."""

    def __call__(
        self,
        part: int,
        clips: Sequence[Any],
        given_up: dict[int, str],
        begin: Callable[[int], None],
        beat: Callable[[], None],
    ) -> int:
        """Build a part without the clips in `given_up` (index -> reason); returns the number of rejects.

        Calls `begin(i)` before clip i and, with their number, after the last; calls `beat()` now and then between two.
        """


class _Worker:
    """A process, our end of its pipe, and what it is doing."""

    def __init__(self, build: BuildPart, memory: int):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, build, memory), daemon=True)
        self.process.start()
        theirs.close()
        self.task: Task | None = None
        self.clip, self.heard = 0, time.monotonic()
        self.begun, self.clips = False, 0

    def give(self, task: Task) -> None:
        """Send a task; that a worker died before it is heard from its pipe afterwards."""
        self.task, self.clip, self.heard = task, 0, time.monotonic()
        self.begun = False
        self.clips += len(task[1])
        with contextlib.suppress(ConnectionError):
            self.pipe.send(task)

    def suspect(self) -> int | None:
        """The clip that a stall or a crash is put down to now."""
        assert self.task is not None
        _, clips, given_up = self.task
        at_a_clip = self.begun and self.clip < len(clips) and self.clip not in given_up
        return self.clip if at_a_clip else None

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def build_parts(
    build: BuildPart,
    memory: int,
    tasks: list[Task],
    workers: int,
    advance: Callable[[int, int], None],
    stall: float = STALL,
) -> None:
    """Build all parts; `advance(clips, rejects)` is called as clips are finished.

    Raises UserError when a worker is killed from outside or cannot write.
    """
    waiting = deque(tasks)
    pool = [_Worker(build, memory) for _ in range(min(workers, len(tasks)))]
    try:
        for worker in pool:
            worker.give(waiting.popleft())
        while any(worker.task for worker in pool):
            ready = wait([worker.pipe for worker in pool if worker.task], timeout=min(1.0, stall / 4))
            for worker in [worker for worker in pool if worker.task]:
                if worker.pipe in ready:
                    retry = _hear(worker, advance)
                elif _stalled(worker, stall):
                    retry = _give_up(worker, f"the decoder made no progress for {stall:.0f} s", advance)
                else:
                    continue
                if retry:
                    waiting.appendleft(retry)
                    pool[pool.index(worker)] = worker = _Worker(build, memory)
                if not worker.task and waiting:
                    if worker.clips >= RECYCLE:
                        worker.stop()
                        pool[pool.index(worker)] = worker = _Worker(build, memory)
                    worker.give(waiting.popleft())
    finally:
        for worker in pool:
            worker.stop()


def _stalled(worker: _Worker, stall: float) -> bool:
    """Whether its clip takes too long. Raises UserError when something else does."""
    silent = time.monotonic() - worker.heard
    if worker.suspect() is not None:
        return silent > stall
    limit, what = (FINISHING, "write out its part") if worker.begun else (STARTING, "begin")
    if silent > limit:
        raise UserError(
            f"a worker did not {what} within {limit:.0f} s; run the same command again with fewer --workers"
        )
    return False


def _hear(worker: _Worker, advance: Callable[[int, int], None]) -> Task | None:
    """Take one message; returns the task to start again when the worker died of its clip."""
    assert worker.task is not None
    worker.heard = time.monotonic()
    try:
        what, value = worker.pipe.recv()
    except (EOFError, ConnectionError):
        worker.process.join()
        code = worker.process.exitcode or 0
        if -code in CRASHES:
            name = signal.Signals(-code).name
            if worker.suspect() is None and worker.clips == len(worker.task[1]):
                when = "after its last clip" if worker.begun else "before its first clip"
                raise RuntimeError(f"a worker crashed ({name}) {when}") from None
            return _give_up(worker, f"the decoder crashed ({name})", advance)
        if -code in (signal.SIGKILL, signal.SIGTERM):
            advice = "perhaps for memory; run the same command again with fewer --workers or less --memory"
            raise UserError(f"a worker was killed from outside, {advice}") from None
        raise RuntimeError(f"a worker ended with exit code {code}") from None
    if what == "clip":
        advance(value - worker.clip, 0)
        worker.clip, worker.begun = value, True
    elif what == "done":
        advance(len(worker.task[1]) - worker.clip, value)
        worker.task = None
    elif what == "disk":
        raise UserError(
            f"cannot write the shards: {value}; make room or name another --out, then run the command again"
        )
    elif what == "failed":
        raise RuntimeError(f"a worker failed:\n{value}")
    return None


def _give_up(worker: _Worker, reason: str, advance: Callable[[int, int], None]) -> Task:
    """The worker's task, to be done from its beginning without the clip it was at."""
    assert worker.task is not None
    part, clips, given_up = worker.task
    suspect = worker.suspect()
    worker.stop()
    advance(-worker.clip, 0)
    return part, clips, given_up | ({} if suspect is None else {suspect: reason})


def _work(pipe: Connection, build: BuildPart, memory: int) -> None:
    """A worker's life: parts until the pipe closes; it ends when the parent is gone."""
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
            part, clips, given_up = pipe.recv()
            rejects = build(part, clips, given_up, lambda i: pipe.send(("clip", i)), beat)
            pipe.send(("done", rejects))
        except (EOFError, ConnectionError):
            return
        except OSError as error:
            pipe.send(("disk", str(error)))
            return
        except Exception:
            pipe.send(("failed", traceback.format_exc()))
            return

"""Build the missing shards with local processes or with Ray, and show the progress."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Lock, Thread

from data_prep.clips import Clip
from data_prep.shard import WORK_FOLDER, Job, build_shard, load_finished, load_rows, notes_name
from data_prep.tally import read_tally, remove_tally
from ma2mba.errors import UserError
from ma2mba.progress import Reporter
from ma2mba.video.pool import Task, run_tasks

log = logging.getLogger(__name__)
SHOW_EVERY = 1.0
"""Seconds after which the progress is shown again, even if no video was finished."""
LOOK_EVERY = 1.0
"""Seconds between two looks at how far the shards are."""


@dataclass(frozen=True)
class Share:
    """The shards that one of `of` machines builds: `number`, `number` + `of`, `number` + 2 `of`, ..."""

    number: int
    of: int

    def shards(self, count: int) -> range:
        """Return the numbers of this share's shards, of `count` in all."""
        return range(self.number, count, self.of)

    @staticmethod
    def parse(text: str) -> "Share":
        """Convert "3/8" to Share(3, 8). Raise UserError unless 0 <= number < of."""
        try:
            number, of = (int(word) for word in text.split("/"))
        except ValueError:
            raise UserError(f"--part {text}: not a share. Write number/of, for example 0/8") from None
        if not 0 <= number < of:
            raise UserError(f"--part {text}: out of range. Use 0/{max(of, 1)} to {max(of, 1) - 1}/{max(of, 1)}")
        return Share(number, of)


def build_missing(
    job: Job, shards: list[list[Clip]], wanted: Sequence[int], workers: int, stall: float, executor: str
) -> None:
    """Build the shards in `wanted` (numbers) that are not finished; `shards` holds the clips of all shards.

    Raise UserError if a worker is killed from outside, OSError if it cannot write.
    """
    tasks = [Task(number, shards[number]) for number in wanted if load_finished(job.out, number) is None]
    if not tasks:
        return
    log.debug(
        "build: %d of %d shards, decoded by %s in %d workers (%s) of %d MB each",
        *(len(tasks), len(wanted), job.recipe.decoder, workers, executor, job.memory >> 20),
    )
    for task in tasks:
        remove_tally(job.out / WORK_FOLDER, task.number)
    built = _Built(job, {task.number for task in tasks})
    total = sum(len(shards[number]) for number in wanted)
    rejects, one_at_a_time = 0, Lock()
    with Reporter(f"building {job.out.name}", total, total - sum(len(task.items) for task in tasks)) as reporter:

        def progress(clips: int) -> None:
            with one_at_a_time:
                reporter.advance(clips, f"{built.summary()}, {rejects} rejected")

        def on_result(_: Task, rejected: int) -> None:
            nonlocal rejects
            rejects += rejected

        with _every(SHOW_EVERY, lambda: progress(0)):
            if executor == "ray":
                from data_prep.ray_executor import run_on_ray

                run_on_ray(job, tasks, progress, on_result, stall)
            else:
                run_tasks(partial(build_shard, job), tasks, workers, job.memory, progress, on_result, stall)


@contextmanager
def _every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Call a function every few seconds, in another thread, until the block ends: a video may take hours."""
    ended = Event()

    def loop() -> None:
        while not ended.wait(seconds):
            with suppress(OSError):  # a build on another machine may finish the folder meanwhile
                call()

    thread = Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@dataclass
class _Built:
    """Hours and frames built since the start, by any process on any machine: of finished and of unfinished shards."""

    job: Job
    pending: set[int]
    frames: int = 0
    seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)
    looked: float = 0.0
    text: str = "0.0 h of video"

    def summary(self) -> str:
        """Return the text to show. Look into the work folder at most every LOOK_EVERY seconds."""
        now = time.monotonic()
        if now - self.looked < LOOK_EVERY and self.pending:
            return self.text
        self.looked = now
        work = self.job.out / WORK_FOLDER
        names = set(os.listdir(work))
        for number in [number for number in self.pending if notes_name(number) in names]:
            self.pending.remove(number)
            rows = load_rows(self.job.out, number)
            self.frames += sum(row.frames for row in rows)
            self.seconds += sum(row.duration for row in rows)
        unfinished = [read_tally(work, number) for number in self.pending]
        frames = self.frames + sum(frames for frames, _ in unfinished)
        seconds = self.seconds + sum(seconds for _, seconds in unfinished)
        rate = frames / max(now - self.started, 1e-9)
        self.text = f"{seconds / 3600:.1f} h of video, {rate:.0f} frames/s, {frames:,} frames"
        return self.text

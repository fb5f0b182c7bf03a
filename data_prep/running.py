"""Build the parts that are missing: by processes here, or by Ray; with a view of how far it is."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from data_prep.clips import Clip
from data_prep.parts import WORK_FOLDER, Job, build_part, load_fragment, load_rows
from ma2mba.errors import UserError
from ma2mba.progress import Reporter
from ma2mba.video.pool import Task, build_parts

LOOK_EVERY = 5.0
"""Seconds between two looks at which parts are finished."""


@dataclass(frozen=True)
class Share:
    """The parts that leave the remainder `number` when divided by `of`: the work of one of several machines."""

    number: int
    of: int

    def of_parts(self, count: int) -> range:
        return range(self.number, count, self.of)

    @staticmethod
    def parse(text: str) -> "Share":
        """ "3/8" -> Share(3, 8). Raises UserError unless 0 <= number < of."""
        try:
            number, of = (int(part) for part in text.split("/"))
        except ValueError:
            raise UserError(f"--part {text}: write number/of, as in 0/8") from None
        if not 0 <= number < of:
            raise UserError(f"--part {text}: numbers go from 0/{max(of, 1)} to {max(of, 1) - 1}/{max(of, 1)}")
        return Share(number, of)


def build_missing(
    job: Job, parts: list[list[Clip]], mine: Sequence[int], workers: int, stall: float, executor: str
) -> None:
    """Build those of the parts `mine` that are not there yet."""
    tasks: list[Task] = [(part, parts[part], {}) for part in mine if load_fragment(job.out, part) is None]
    if not tasks:
        return
    done = _Finished(job, {part for part, _, _ in tasks})
    already = sum(len(parts[part]) for part in mine) - sum(len(clips) for _, clips, _ in tasks)
    rejects = 0
    with Reporter(f"building {job.out.name}", sum(len(parts[part]) for part in mine), already) as reporter:

        def advance(clips: int, rejected: int) -> None:
            nonlocal rejects
            rejects += rejected
            reporter.advance(clips, f"{done.look()}, {rejects} rejected")

        if executor == "ray":
            from data_prep.ray_executor import build_parts_on_ray

            build_parts_on_ray(job, tasks, advance, stall)
        else:
            build_parts(partial(build_part, job), job.memory, tasks, workers, advance, stall)


@dataclass
class _Finished:
    """Hours and frames of the parts finished since the start, whoever on whichever machine builds them."""

    job: Job
    pending: set[int]
    frames: int = 0
    seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)
    looked: float = 0.0
    said: str = "0.0 h of video"

    def look(self) -> str:
        """What to say of it; looks at the folder now and then."""
        now = time.monotonic()
        if now - self.looked < LOOK_EVERY and self.pending:
            return self.said
        self.looked = now
        names = set(os.listdir(self.job.out / WORK_FOLDER))
        for part in [part for part in self.pending if f"part-{part:05d}.json" in names]:
            self.pending.remove(part)
            rows = load_rows(self.job.out, part)
            self.frames += sum(row.frames for row in rows)
            self.seconds += sum(row.duration for row in rows)
        rate = self.frames / max(now - self.started, 1e-9)
        self.said = f"{self.seconds / 3600:.1f} h of video, {rate:.0f} frames/s"
        return self.said

"""Runs the readings: finds their states, starts the decoders of those whose turn it is, and lets the model read.

The engine's thread alone uses it.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ma2mba.errors import UserError
from ma2mba.inference.session import Session
from ma2mba.serving.frames_ahead import FramesAhead
from ma2mba.serving.queues import Queues
from ma2mba.serving.reading import MediumReading
from ma2mba.serving.states import States
from ma2mba.video.frames import FrameReader

log = logging.getLogger(__name__)
END_SECONDS = 10.0
"""Seconds that the decoders get to end when the server stops."""


@dataclass
class _Run:
    reading: MediumReading
    ahead: FramesAhead


class Readers:
    """The readings that run: `most` at once, a slice of each in turn."""

    def __init__(self, like: Session, states: States, queues: Queues, wake: Callable[[], None]):
        self._like, self._states, self._queues, self._wake = like, states, queues, wake
        self._runs: list[_Run] = []
        self._ending: list[_Run] = []
        self._idle: list[FrameReader] = []
        self.frames = 0
        self.forgetting: set[str] = set()
        """Contents whose states are deleted as soon as nobody waits for them. Any thread may add one."""

    def look_after(self) -> None:
        """Find states, start readings, and end those that nobody waits for."""
        self._collect()
        self._forget()
        ready_to_start = [reading for reading in self._queues.readings() if self._may_start(reading)]
        while ready_to_start and len(self._runs) + len(self._ending) < self._queues.limits.readers:
            running = Counter(run.reading.client for run in self._runs)
            reading = min(ready_to_start, key=lambda waiting: running[waiting.client])  # the first of the least served
            ready_to_start.remove(reading)
            self._start(reading)

    def advance(self, seconds: float) -> bool:
        """Let the model read on in the next medium that can be read on. Return False if there is none."""
        for run in list(self._runs):
            self._runs.remove(run)
            self._runs.append(run)  # its turn comes again after the others'
            before = run.reading.frames_read
            if self._advance(run, seconds):
                self.frames += max(0, run.reading.frames_read - before)
                return True
        return False

    def find(self, reading: MediumReading) -> Session | None:
        """Return a session after the medium of a reading that is ready.

        None if its state must be loaded or read again first: it is ready again later.
        """
        states = self._states.find(reading.prefix)
        if states is None:
            reading.lost()
            return None
        session = self._like.fork()
        session.jump(states)
        return session

    def close(self) -> None:
        """End all decoders."""
        for run in self._runs:
            run.reading.stop()
        until = time.monotonic() + END_SECONDS
        for run in [*self._runs, *self._ending]:
            run.ahead.join(max(0.0, until - time.monotonic()))
        for frames in [*self._idle, *(run.ahead.frames for run in [*self._runs, *self._ending])]:
            if frames:
                frames.close()

    def _may_start(self, reading: MediumReading) -> bool:
        """Return whether the medium of a reading can be decoded now. Do what must happen before."""
        if not reading.holders and self._queues.drop(reading):
            self._end(reading)
            return False
        if reading.state != "queued" or reading.loading:
            return False
        if watched := self._states.known(reading.prefix):
            reading.found(watched)
            self._let_parent_go(reading)
            return False
        if not reading.looked_up:
            reading.looked_up = reading.loading = True
            if self._states.load(reading.prefix, lambda: self._loaded(reading)):
                return False
            reading.loading = False
        return self._has_parent(reading)

    def _loaded(self, reading: MediumReading) -> None:
        """In a thread that has loaded a state, or could not: look again."""
        reading.loading = False
        self._wake()

    def _has_parent(self, reading: MediumReading) -> bool:
        """Return whether the state before the last medium is there, and see to it."""
        prefix = reading.prefix.parent
        if prefix is None:
            return True
        if reading.parent is None:
            reading.parent = self._queues.hold(prefix, reading.client, limited=False)
        if reading.parent.state == "failed":
            reading.fail(UserError(f"the medium before it: {reading.parent.progress.error}"))
            self._let_parent_go(reading)
        return reading.parent is not None and reading.parent.state == "ready"

    def _let_parent_go(self, reading: MediumReading) -> None:
        if reading.parent:
            parent, reading.parent = reading.parent, None
            self._queues.release(parent)

    def _start(self, reading: MediumReading) -> None:
        base = self._like.fork()
        if reading.parent:
            before = self.find(reading.parent)
            if before is None:
                return
            base = before
        segment = reading.prefix.segments[-1]
        frames = self._idle.pop() if self._idle else None
        ahead = FramesAhead(frames, self._like, segment.before, reading.medium.path)
        self._runs.append(_Run(reading, ahead))
        reading.begin(ahead, base, reading.parent.watched if reading.parent else (), self._states.keep)
        ahead.start(self._wake)

    def _advance(self, run: _Run, seconds: float) -> bool:
        reading = run.reading
        try:
            moved = reading.advance(seconds)
        except Exception as error:
            if not isinstance(error, UserError | MemoryError):
                log.exception("a medium could not be read")
            if not reading.take_other():
                reading.fail(error)
            self._end(reading)
            if is_fatal(error):
                raise
            return True
        if reading.state == "ready":
            self._end(reading)
        return moved

    def _end(self, reading: MediumReading) -> None:
        """Stop a reading's decoder, and let its parent go."""
        reading.stop()
        self._let_parent_go(reading)
        for run in self._runs:
            if run.reading is reading:
                self._runs.remove(run)
                self._ending.append(run)
                return

    def _forget(self) -> None:
        """Delete the states of media that are to be forgotten and that nobody waits for."""
        if self.forgetting:
            waited_for = {content for reading in self._queues.readings() for content in reading.prefix.contents}
            for content in self.forgetting - waited_for:
                self.forgetting.discard(content)
                self._states.forget(content)

    def _collect(self) -> None:
        """Take back the decoders of readings that have ended."""
        for run in list(self._ending):
            if run.ahead.ended:
                self._ending.remove(run)
                if run.ahead.frames:
                    self._idle.append(run.ahead.frames)


def is_fatal(error: BaseException) -> bool:
    """Return whether the GPU is of no more use to this process."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)

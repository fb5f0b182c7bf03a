"""The readings of stored media: they go on when nobody asks for them, and end with their media."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

from ma2mba.errors import UserError
from ma2mba.serving.contract import Busy, Engine, Library, Medium, Progress, Reading, Stored
from ma2mba.serving.errors import Refused

log = logging.getLogger(__name__)
SWEEP_SECONDS = 15
AGAIN_SECONDS = 1.0
"""Seconds after which a full queue is tried again for a client that waits for events."""


class _Read:
    """A reading of a stored medium, which is held meanwhile, and the task that waits for its end."""

    def __init__(self, reading: Reading, medium: Medium, owner: str, library: Library):
        self.reading, self.owner = reading, owner
        self.last: Progress | None = None
        library.hold(medium)
        self.task = asyncio.create_task(self._wait())
        self.task.add_done_callback(lambda _: library.release(medium))

    @property
    def progress(self) -> Progress:
        return self.last or self.reading.progress

    async def _wait(self) -> None:
        try:
            await self.reading.wait()
        except UserError:
            pass  # the progress says why
        finally:
            self.last = self.reading.progress
            self.reading.release()


class Readings:
    """Reads stored media, each once. Runs on the server's event loop."""

    def __init__(self, engine: Engine, library: Library):
        self._engine, self._library = engine, library
        self._reads: dict[str, _Read] = {}
        self._closed = asyncio.Event()

    def progress(self, stored: Stored, client: str) -> Progress:
        """Return how far a medium was read. If nobody reads it yet, begin; "queued" if the queue is full."""
        read = self._read(stored, client)
        return read.progress if read else Progress("queued", duration=stored.duration)

    async def events(self, stored: Stored, client: str) -> AsyncIterator[Progress]:
        """Yield the progress now and after each change, until the medium is read, has failed, or is deleted."""
        while not (read := self._read(stored, client)):
            yield Progress("queued", duration=stored.duration)
            await asyncio.sleep(AGAIN_SECONDS)
            self._library.find(stored.id, client)
        if read.last:
            yield read.last
            return
        events = read.reading.events()
        closed = asyncio.create_task(self._closed.wait())
        try:
            while not self._closed.is_set():
                step = asyncio.ensure_future(anext(events, None))
                await asyncio.wait({step, closed}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done() or (progress := step.result()) is None:
                    step.cancel()
                    return
                yield progress
        finally:
            closed.cancel()

    async def drop(self, id: str) -> None:
        """Stop reading a medium that is deleted."""
        if read := self._reads.pop(id, None):
            read.task.cancel()
            with suppress(asyncio.CancelledError):
                await read.task

    async def sweep(self) -> None:
        """Drop the readings of media that the library has deleted, again and again."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            kept = {
                stored.id for owner in {read.owner for read in self._reads.values()} for stored in self._list(owner)
            }
            for id in [id for id in self._reads if id not in kept]:
                await self.drop(id)

    async def close(self) -> None:
        """Stop all readings, and end the events of everybody who follows one."""
        self._closed.set()
        for id in list(self._reads):
            await self.drop(id)

    def _list(self, owner: str) -> list[Stored]:
        try:
            return self._library.list(owner)
        except Refused:
            return []

    def _read(self, stored: Stored, client: str) -> _Read | None:
        if stored.id not in self._reads:
            try:
                reading = self._engine.read(stored.medium, client)
            except Busy:
                return None
            self._reads[stored.id] = _Read(reading, stored.medium, client, self._library)
        return self._reads[stored.id]

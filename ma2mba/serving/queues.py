"""Who waits for what: questions and readings, with limits for each client and in all. Any thread may use it."""

import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from ma2mba.inference.state_file import Watched
from ma2mba.serving.asked import Asked
from ma2mba.serving.contract import Busy, Progress
from ma2mba.serving.errors import Refused
from ma2mba.serving.prompt import Prefix
from ma2mba.serving.reading import MediumReading

SOON, LATER = 5.0, 30.0
"""Seconds after which a client may ask, or send a video, again."""


@dataclass(frozen=True)
class Limits:
    """How much may be done at once.

    places            answers that are written at once
    waiting           questions, and readings, that may wait
    client_places     answers of one client that are written or wait
    client_readings   readings of one client that run or wait
    readers           media that are decoded at once
    """

    places: int = 32
    waiting: int = 256
    client_places: int = 64
    client_readings: int = 64
    readers: int = 4


class Queues:
    """Questions and readings that are not over. `wake` is called when there is something new."""

    def __init__(self, limits: Limits, known: Callable[[Prefix], tuple[Watched, ...] | None], wake: Callable[[], None]):
        self.limits, self._known, self._wake = limits, known, wake
        self._lock = threading.Lock()
        self._asked: list[Asked] = []
        self._readings: dict[str, MediumReading] = {}

    def add(self, asked: Asked) -> None:
        """Take a question. Raise Busy if a queue is full."""
        with self._lock:
            own = sum(len(other.answers) for other in self._asked if other.client == asked.client)
            if own + len(asked.answers) > self.limits.client_places:
                raise Busy(
                    f"you have {own} unfinished answers, and {self.limits.client_places} are allowed at once. "
                    "Wait until one ends",
                    SOON,
                )
            if len(self._asked) >= self.limits.waiting + self.limits.places:
                raise Busy("too many questions are waiting. Try again later", SOON)
            if asked.prompt.prefix:
                asked.reading = self._hold(asked.prompt.prefix, asked.client)
                asked.started = asked.reading.holders == 1 and not asked.reading.done
            self._asked.append(asked)
        self._wake()

    def hold(self, prefix: Prefix, client: str, *, limited: bool = True) -> MediumReading:
        """Return the reading of a prefix, and hold it until `release`. Raise Busy if a queue is full."""
        with self._lock:
            reading = self._hold(prefix, client, limited=limited)
        self._wake()
        return reading

    def release(self, reading: MediumReading) -> None:
        with self._lock:
            reading.holders -= 1
            if reading.done and not reading.holders and self._readings.get(reading.prefix.key) is reading:
                del self._readings[reading.prefix.key]
        self._wake()

    def drop(self, reading: MediumReading) -> bool:
        """Remove a reading that nobody holds. Return whether nobody does."""
        with self._lock:
            if reading.holders:
                return False
            if self._readings.get(reading.prefix.key) is reading:
                del self._readings[reading.prefix.key]
            return True

    def remove(self, asked: Asked) -> None:
        """Forget a question that is over."""
        with self._lock:
            if asked not in self._asked:
                return
            self._asked.remove(asked)
        if asked.reading:
            self.release(asked.reading)

    def asked(self) -> list[Asked]:
        with self._lock:
            return list(self._asked)

    def readings(self) -> list[MediumReading]:
        with self._lock:
            return list(self._readings.values())

    def before(self, reading: MediumReading) -> int:
        """Return how many readings wait in front of one."""
        waiting = [other for other in self.readings() if other.state == "queued"]
        return waiting.index(reading) if reading in waiting else 0

    def _hold(self, prefix: Prefix, client: str, *, limited: bool = True) -> MediumReading:
        reading = self._readings.get(prefix.key)
        if reading is None or reading.state == "failed":
            watched = self._known(prefix)
            if limited and watched is None:
                self._require_room(client)
            reading = self._readings[prefix.key] = MediumReading(prefix, client)
            if watched is not None:
                reading.found(watched)
        elif not reading.done and all(prefix.medium.path != other.path for other in reading.media):
            reading.media.append(prefix.medium)
        reading.holders += 1
        return reading

    def _require_room(self, client: str) -> None:
        unread = [reading for reading in self._readings.values() if not reading.done]
        own = sum(reading.client == client for reading in unread)
        if own >= self.limits.client_readings:
            raise Busy(
                f"{own} of your videos and images are being read or wait. Wait until one is read, or delete it", LATER
            )
        if len(unread) >= self.limits.waiting + self.limits.readers:
            raise Busy("too many videos and images are waiting to be read. Try again later", LATER)


class Held:
    """`Reading` of one client: it holds a reading until `release`. `name` is the client's name of the medium."""

    def __init__(self, reading: MediumReading, queues: Queues, name: str):
        self._reading, self._queues, self._name, self._released = reading, queues, name, False

    @property
    def progress(self) -> Progress:
        progress = self._reading.progress
        if progress.state == "failed":
            return replace(progress, error=f"{self._name}: {progress.error}")
        return replace(progress, waiting=self._queues.before(self._reading)) if progress.state == "queued" else progress

    async def wait(self) -> Progress:
        """Return when the medium is read. Raise Refused if it cannot be."""
        async for progress in self.events():
            last = progress
        if last.state == "failed":
            raise Refused(last.error, 400, "unreadable_media")
        return last

    async def events(self) -> AsyncIterator[Progress]:
        with self._reading.news.listen() as told:
            while True:
                told.clear()
                progress = self.progress
                yield progress
                if progress.state in ("ready", "failed"):
                    return
                await told.wait()

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._queues.release(self._reading)

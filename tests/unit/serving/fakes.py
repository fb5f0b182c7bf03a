"""An engine and a library that do what tests tell them, and a server that runs in this process."""

import asyncio
import hashlib
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from ma2mba.serving.app import create_app
from ma2mba.serving.contract import Busy, Likely, Medium, Piece, Progress, Question, Stored, Usage
from ma2mba.serving.errors import Refused
from ma2mba.serving.settings import Settings


class FakeAnswering:
    """Writes the words of a text, `pause` seconds apart."""

    def __init__(self, question: Question, words: list[str], pause: float, error: Exception | None):
        self.usage = Usage(prompt_tokens=7, cached_tokens=3, seeds=[11, 12][: question.answers])
        self.question, self._words, self._pause, self._error = question, words, pause, error
        self.cancelled, self.ended = False, False

    async def __aiter__(self) -> AsyncIterator[Piece]:
        for word in self._words:
            for number in range(self.question.answers):
                await asyncio.sleep(self._pause)
                self.usage.answer_tokens += 1
                token = Likely(len(word), word, -0.5)
                named = self.question.sampling.logprobs
                others = ((token,) * self.question.alternatives,) if named else ()
                yield Piece(number, word, (token,) if named else (), others)
        if self._error:
            raise self._error
        for number in range(self.question.answers):
            yield Piece(number, "", reason="end")
        self.ended = True

    def cancel(self) -> None:
        self.cancelled = not self.ended


class FakeReading:
    """A reading whose progress the test sets."""

    def __init__(self):
        self.progress, self.released = Progress("reading", 1, 4, 1, 4, 2.0), False

    async def wait(self) -> Progress:
        while self.progress.state not in ("ready", "failed"):
            await asyncio.sleep(0.01)
        return self.progress

    async def events(self) -> AsyncIterator[Progress]:
        yield self.progress
        yield await self.wait()

    def release(self) -> None:
        self.released = True


class FakeEngine:
    """Answers with `words`. `full`: refuse everything, `broken`: why nothing works, `error`: how answers end."""

    def __init__(self):
        self.words, self.pause, self.error = ["a", " cat"], 0.0, None
        self.full, self.broken, self.stopped = False, "", False
        self.asked: list[FakeAnswering] = []
        self.reads: list[FakeReading] = []

    def read(self, medium: Medium, client: str) -> FakeReading:
        if self.full:
            raise Busy("too many videos wait", 7)
        self.reads.append(FakeReading())
        return self.reads[-1]

    def ask(self, question: Question) -> FakeAnswering:
        if self.full:
            raise Busy("too many questions wait", 7)
        self.asked.append(FakeAnswering(question, self.words, self.pause, self.error))
        return self.asked[-1]

    def forget(self, content: str) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        self.stopped = True

    def problem(self) -> str:
        return self.broken

    def status(self) -> dict[str, float]:
        return {"places_taken": 2, "frames_total": 5}


class FakeLibrary:
    """Keeps uploads in memory. `held` counts media that were fetched and not released."""

    def __init__(self):
        self.kept: dict[tuple[str, str], Stored] = {}
        self.contents: dict[str, bytes] = {}
        self.fetched: list[tuple[str, str, str]] = []
        self.held, self.started, self.closed = 0, False, False

    async def start(self) -> None:
        self.started = True

    async def store(self, chunks: AsyncIterator[bytes], name: str, owner: str, length: int | None = None) -> Stored:
        content = b"".join([chunk async for chunk in chunks])
        medium = Medium(Path("/private/place"), hashlib.sha256(content).hexdigest(), "video", name)
        stored = Stored(secrets.token_urlsafe(16), medium, len(content), 4.0, time.time(), time.time() + 60)
        self.kept[owner, stored.id] = stored
        self.contents[stored.id] = content
        return stored

    async def keep(self, url: str, owner: str) -> Stored:
        async def chunks() -> AsyncIterator[bytes]:
            yield url.encode()

        return await self.store(chunks(), "linked", owner)

    async def fetch(self, url: str, kind: str, owner: str) -> Medium:
        self.fetched.append((url, kind, owner))
        if url.startswith("file:"):
            raise Refused("this file is outside the media root. Name another", 403, "forbidden_file")
        self.held += 1
        return Medium(Path("/private/place"), hashlib.sha256(url.encode()).hexdigest(), kind, "name")

    def hold(self, medium: Medium) -> None:
        self.held += 1

    def release(self, medium: Medium) -> None:
        self.held -= 1

    def find(self, id: str, owner: str) -> Stored:
        if (owner, id) not in self.kept:
            raise Refused("there is no video of this id. Upload it again", 404, "unknown_video")
        return self.kept[owner, id]

    def list(self, owner: str) -> list[Stored]:
        return [stored for (whose, _), stored in self.kept.items() if whose == owner]

    async def delete(self, id: str, owner: str) -> None:
        del self.kept[owner, id]

    async def end(self, owner: str) -> None: ...

    def status(self) -> dict[str, float]:
        return {"uploads_bytes": 3}

    async def close(self) -> None:
        self.closed = True


def make_app(engine: FakeEngine, library: FakeLibrary, tmp_path: Path, **values) -> FastAPI:
    """Return the application with fakes behind it."""
    (tmp_path / "toy").mkdir(exist_ok=True)
    return create_app(Settings(model=tmp_path / "toy", cache=tmp_path / "cache", **values), engine, library)


@contextmanager
def running(app: FastAPI):
    """Serve an application on a free port of this machine; give its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Return when a condition holds; fail if it takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition does not come true"
        time.sleep(0.01)

"""A fake engine and a fake library, whose pace a test sets, and a server in a thread that shows the page with them."""

import asyncio
import hashlib
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import uvicorn

from ma2mba.serving.app import create_app
from ma2mba.serving.contract import Busy, Medium, Piece, Progress, Question, Stored, Usage
from ma2mba.serving.errors import Refused
from ma2mba.serving.settings import Settings

DURATION = 20.0


class FakeReading:
    """Reads `rate` seconds of a 20-second video in a second."""

    def __init__(self, engine: "FakeEngine", medium: Medium):
        self._engine, self._broken = engine, b"broken" in medium.path.read_bytes()[:64]
        self.progress = Progress("queued", duration=DURATION, total=int(DURATION), waiting=2)
        self.released = 0
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        await asyncio.sleep(0.3)
        if self._broken:
            self.progress = Progress("failed", error="clip.mp4: damaged after 3 s. Repair it, or send another file")
            return
        while self.progress.seconds < DURATION:
            await asyncio.sleep(0.1)
            seconds = min(DURATION, self.progress.seconds + self._engine.rate * 0.1)
            self.progress = replace(
                self.progress, state="reading", seconds=seconds, frames=int(seconds) + 1, frames_per_second=123
            )
        self.progress = replace(self.progress, state="ready", frames=int(DURATION), seconds=DURATION)

    async def wait(self) -> Progress:
        await self._task
        return self.progress

    async def events(self) -> AsyncIterator[Progress]:
        while True:
            yield self.progress
            if self.progress.state in ("ready", "failed"):
                return
            await asyncio.sleep(0.05)

    def release(self) -> None:
        self.released += 1


class FakeAnswer:
    def __init__(self, engine: "FakeEngine", question: Question, seen: float):
        self._engine, self.usage, self.cancelled = engine, Usage(seconds_of_video=seen), False
        self._question = question

    async def __aiter__(self) -> AsyncIterator[Piece]:
        words = self._engine.reply or f"You asked: {self._question.turns[-1].parts[-1]}"
        for word in words.split(" "):
            await asyncio.sleep(self._engine.pause)
            yield Piece(0, word + " ")
        yield Piece(0, "", reason="end")

    def cancel(self) -> None:
        self.cancelled = True


class FakeEngine:
    """Answers with the question, or with `reply`. `busy`: how many calls of `ask` are refused first."""

    def __init__(self, rate: float = 100.0, pause: float = 0.05, reply: str = "", busy: int = 0):
        self.rate, self.pause, self.reply, self.busy = rate, pause, reply, busy
        self.readings: dict[str, FakeReading] = {}
        self.questions: list[Question] = []
        self.answers: list[FakeAnswer] = []

    def read(self, medium: Medium, client: str) -> FakeReading:
        if medium.content not in self.readings:
            self.readings[medium.content] = FakeReading(self, medium)
        return self.readings[medium.content]

    def ask(self, question: Question) -> FakeAnswer:
        if self.busy:
            self.busy -= 1
            raise Busy("all places are taken", 7)
        medium = question.turns[0].parts[0]
        assert isinstance(medium, Medium)
        answer = FakeAnswer(self, question, self.readings[medium.content].progress.seconds)
        self.questions.append(question)
        self.answers.append(answer)
        return answer

    def forget(self, content: str) -> None: ...
    def problem(self) -> str:
        return ""

    async def stop(self, grace_seconds: float) -> None: ...
    def status(self) -> dict[str, float]:
        return {}


class FakeLibrary:
    """Keeps uploads in a folder. Refuses what is larger than `most` bytes."""

    def __init__(self, folder: Path, most: int):
        self._folder, self._most = folder, most
        self.kept: dict[str, tuple[str, Stored]] = {}

    async def start(self) -> None: ...
    async def store(self, chunks: AsyncIterator[bytes], name: str, owner: str, length: int | None = None) -> Stored:
        content = b""
        async for chunk in chunks:
            content += chunk
            if len(content) > self._most:
                raise Refused(f"larger than {self._most:,} bytes. Send a smaller file", 413)
        if content.startswith(b"text"):
            raise Refused("neither a video nor a picture. Send an MP4 file", 415)
        id = secrets.token_urlsafe(16)
        path = self._folder / id
        path.write_bytes(content)
        kind = "image" if content.startswith(b"\x89PNG") else "video"
        medium = Medium(path, hashlib.sha256(content).hexdigest(), kind, name)
        stored = Stored(id, medium, len(content), DURATION, time.time(), time.time() + 60)
        self.kept[id] = (owner, stored)
        return stored

    async def keep(self, url: str, owner: str) -> Stored:
        raise Refused(f"{url}: this host is not allowed. Upload the file", 403)

    async def fetch(self, url: str, kind: str, owner: str) -> Medium:
        raise NotImplementedError

    def release(self, medium: Medium) -> None: ...
    def find(self, id: str, owner: str) -> Stored:
        found = self.kept.get(id)
        if not found or found[0] != owner:
            raise Refused(f"{id}: no such video. Upload it again", 404)
        return found[1]

    def list(self, owner: str) -> list[Stored]:
        return [stored for whose, stored in self.kept.values() if whose == owner]

    async def delete(self, id: str, owner: str) -> None:
        self.find(id, owner).medium.path.unlink()
        del self.kept[id]

    async def end(self, owner: str) -> None:
        for stored in self.list(owner):
            await self.delete(stored.id, owner)

    def status(self) -> dict[str, float]:
        return {}

    async def close(self) -> None: ...


@contextmanager
def served(engine, library, settings: Settings):
    """Serve an engine and a library on this machine. Yields the address of the page."""
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings, engine, library),
            port=settings.port,
            log_level="critical",
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
        assert thread.is_alive()
    try:
        yield f"http://127.0.0.1:{settings.port}/"
    finally:
        server.should_exit = True
        thread.join(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

"""An engine that reads and writes at the pace that a test sets."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from ma2mba.serving.contract import Busy, Medium, Piece, Progress, Question, Usage

DURATION = 20.0


class PacedReading:
    """Reads `rate` seconds of a 20-second video in a second."""

    def __init__(self, engine: "PacedEngine"):
        self._engine = engine
        self.progress = Progress("queued", duration=DURATION, total=int(DURATION), waiting=2)
        self.released = 0
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        await asyncio.sleep(0.3)
        if self._engine.damage:
            self.progress = Progress("failed", error=self._engine.damage)
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


class PacedAnswer:
    """Writes a word every `pause` seconds."""

    def __init__(self, engine: "PacedEngine", question: Question, seen: float):
        self._engine, self._question = engine, question
        self.usage, self.cancelled = Usage(seconds_of_video=seen), False

    async def __aiter__(self) -> AsyncIterator[Piece]:
        words = self._engine.reply or f"You asked: {self._question.turns[-1].parts[-1]}"
        for word in words.split(" "):
            await asyncio.sleep(self._engine.pause)
            yield Piece(0, word + " ")
        yield Piece(0, "", reason="end")

    def cancel(self) -> None:
        self.cancelled = True


class PacedEngine:
    """Answers with the question, or with `reply`. `busy` questions are refused first; `damage` ends every reading."""

    def __init__(self):
        self.rate, self.pause = 100.0, 0.05
        self.reply = self.damage = ""
        self.busy = 0
        self.readings: dict[str, PacedReading] = {}
        self.questions: list[Question] = []
        self.answers: list[PacedAnswer] = []

    def read(self, medium: Medium, client: str) -> PacedReading:
        known = self.readings.get(medium.content)
        if not known or known.progress.state == "failed":
            self.readings[medium.content] = PacedReading(self)
        return self.readings[medium.content]

    def ask(self, question: Question) -> PacedAnswer:
        if self.busy:
            self.busy -= 1
            raise Busy("all places are taken", 7)
        medium = question.turns[0].parts[0]
        assert isinstance(medium, Medium)
        answer = PacedAnswer(self, question, self.readings[medium.content].progress.seconds)
        self.questions.append(question)
        self.answers.append(answer)
        return answer

    def forget(self, content: str) -> None: ...
    def problem(self) -> str:
        return ""

    async def stop(self, grace_seconds: float) -> None: ...
    def status(self) -> dict[str, float]:
        return {}

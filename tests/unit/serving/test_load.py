"""Many clients at once ask a process of `ma2mba serve`, each about a video of its own, until it is killed."""

import asyncio
import base64
import random
import re
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from ma2mba.inference.answer import Answer
from ma2mba.inference.chat import VideoChat
from tests.unit.serving.fakes import wait_for
from tests.unit.serving.process import Server, serving
from tests.unit.video.numbered_video import write

QUESTION = "Which symbol appeared?"
LONG_SECONDS = 3600
"""A video that is read while others are asked about."""
GROWTH = 60 << 20
"""Bytes by which the memory of the server may grow after every client has had an answer."""


@dataclass
class Visitor:
    """A client with a token and a video of its own. `expected`: what VideoChat answers about the video."""

    token: str
    path: Path
    expected: Answer
    ids: list[str] = field(default_factory=list)
    answered: int = 0

    def client(self, url: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=self.token, max_retries=0, timeout=300)


@dataclass
class Load:
    """The clients of a server, and until when they ask."""

    url: str
    visitors: list[Visitor]
    until: float

    async def run(self, seed: int) -> None:
        rngs = [random.Random(f"{seed} {number}") for number in range(len(self.visitors))]
        async with asyncio.TaskGroup() as group:
            for visitor, rng in zip(self.visitors, rngs, strict=True):
                group.create_task(self._visit(visitor, rng))

    async def _visit(self, visitor: Visitor, rng: random.Random) -> None:
        async with visitor.client(self.url) as client:
            visitor.ids.append(await upload(client, visitor.path))
            before = visitor.answered
            while time.monotonic() < self.until or visitor.answered == before:
                kind = rng.choice(["whole", "whole", "stream", "stream", "cancelled", "foreign", "again"])
                if kind == "foreign":
                    await self._ask_about_anothers(client, visitor)
                elif kind == "again":
                    await client.delete(f"/videos/{visitor.ids.pop()}", cast_to=object)
                    visitor.ids.append(await upload(client, visitor.path))
                else:
                    await ask(client, visitor, rng, kind)

    async def _ask_about_anothers(self, client: openai.AsyncOpenAI, visitor: Visitor) -> None:
        foreign = [id for other in self.visitors if other is not visitor for id in other.ids]
        for id in foreign[:1]:
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(**about(id))


async def upload(client: openai.AsyncOpenAI, path: Path) -> str:
    files = {"file": (path.name, path.read_bytes())}
    headers = {"headers": {"Content-Type": "multipart/form-data"}}
    video = await client.post("/videos", cast_to=dict, files=files, options=headers)
    return video["id"]


async def ask(client: openai.AsyncOpenAI, visitor: Visitor, rng: random.Random, kind: str = "whole") -> int:
    """Ask about the visitor's video, and compare the answer. Return how many tokens of the prompt were known."""
    data = "data:video/x-matroska;base64," + base64.b64encode(visitor.path.read_bytes()).decode()
    url = rng.choice([visitor.ids[-1], visitor.path.as_uri(), data])
    if kind == "whole":
        answer = await client.chat.completions.create(**about(url))
        content, known = answer.choices[0].logprobs.content, answer.usage.prompt_tokens_details.cached_tokens
        assert answer.choices[0].message.content == visitor.expected.text
    else:
        content, known = [], 0
        async with await client.chat.completions.create(**about(url), stream=True) as stream:
            async for chunk in stream:
                content += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
                if kind == "cancelled":
                    break
    logprobs = [token.logprob for token in content]
    assert logprobs == pytest.approx(visitor.expected.logprobs[: len(logprobs)], abs=1e-5)
    if kind != "cancelled":
        assert len(logprobs) == len(visitor.expected.logprobs)
        visitor.answered += 1
    return known


def about(url: str) -> dict:
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    return {"model": "toy", "messages": messages, "max_tokens": 20, "temperature": 0, "logprobs": True}


def lengths(count: int, longest: int) -> list[int]:
    """Return seconds of videos: from 10 s on, each longer than the one before by the same factor."""
    return [round(10 * (longest / 10) ** (number / (count - 1))) for number in range(count)]


def invite(folder: Path, seconds: list[int], model, tokenizer) -> list[Visitor]:
    """Write a video for each visitor, and find out what VideoChat answers about it."""
    visitors = []
    for number, length in enumerate(seconds):
        path = folder / f"{number}.mkv"
        write(path, [*range(number * 7, number * 7 + length)], Fraction(1), codec="mpeg4", options={})
        chat = VideoChat(model, tokenizer)
        chat.watch(path, hashed=False)
        expected = chat.ask(QUESTION, max_tokens=20, temperature=0, logprobs=True)
        visitors.append(Visitor(f"token-of-visitor-{number}", path, expected))
    answers = {tuple(round(value, 4) for value in visitor.expected.logprobs) for visitor in visitors}
    assert len(answers) == len(visitors), "each video has an answer of its own"
    return visitors


async def grown(server: Server, work: Coroutine[Any, Any, None]) -> list[int]:
    """Do some work. Return the bytes of the server's process before it, meanwhile and after it."""
    process, task = psutil.Process(server.process.pid), asyncio.create_task(work)
    sizes = []
    while not task.done():
        sizes.append(process.memory_info().rss)
        await asyncio.wait({task}, timeout=0.5)
    await task
    return [*sizes, process.memory_info().rss]


def numbers(url: str, token: str) -> dict[str, float]:
    """Return the metrics without labels."""
    text = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"}).text
    return {name: float(value) for name, value in re.findall(r"^ma2mba_(\w+) (\S+)$", text, re.MULTILINE)}


async def long_reading_beside_a_known_video(url: str, visitor: Visitor, path: Path) -> float:
    """Return the progress, 0 to 1, of a long video's reading when an answer about a known video begins."""
    async with visitor.client(url) as client:
        await ask(client, visitor, random.Random(0))
        id = await upload(client, path)
        async with await client.chat.completions.create(**about(visitor.ids[-1]), stream=True) as stream:
            await anext(aiter(stream))
            reading = (await client.get(f"/videos/{id}", cast_to=dict))["reading"]
        await client.delete(f"/videos/{id}", cast_to=object)
        return reading["seconds"] / LONG_SECONDS


@pytest.mark.parametrize(
    ("count", "seconds", "longest"),
    [(10, 10, 60), pytest.param(50, 60, 600, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_many_clients_at_once(model, tokenizer, model_folder, tmp_path, count, seconds, longest):
    root, tokens = tmp_path / "root", tmp_path / "tokens"
    root.mkdir()
    visitors = invite(root, lengths(count, longest), model, tokenizer)
    write(root / "long.mkv", range(LONG_SECONDS), Fraction(1), codec="mpeg4", options={})
    tokens.write_text("".join(f"visitor{number} {one.token}\n" for number, one in enumerate(visitors)))
    options = ("--model", model_folder, "--name", "toy", "--token-file", tokens, "--media-root", root)
    options += ("--cache", tmp_path / "cache", "--dtype", "fp32", "--device", "cpu")
    with serving(*options) as server:
        asyncio.run(Load(server.url, visitors, 0).run(0))
        sizes = asyncio.run(grown(server, Load(server.url, visitors, time.monotonic() + seconds).run(1)))
        answers = [visitor.answered for visitor in visitors]
        print(f"{sum(answers)} answers, {sizes[0] >> 20} to {max(sizes) >> 20} MiB")
        assert min(answers) >= 2
        assert max(sizes) < sizes[0] + GROWTH
        assert asyncio.run(long_reading_beside_a_known_video(server.url, visitors[0], root / "long.mkv")) < 0.9
        assert server.process.poll() is None
        wait_for(lambda: at_rest(numbers(server.url, visitors[0].token)), 60)
        server.process.kill()
    assert "Traceback" not in server.log
    with serving(*options) as server:

        async def ask_again(visitor: Visitor) -> int:
            async with visitor.client(server.url) as client:
                return await ask(client, visitor, random.Random(2))

        async def ask_all() -> list[int]:
            return await asyncio.gather(*map(ask_again, visitors))

        assert min(asyncio.run(ask_all())) > 0
        assert numbers(server.url, visitors[0].token)["frames_read_total"] == 0
    assert "Traceback" not in server.log


def at_rest(status: dict[str, float]) -> bool:
    return not any(status[key] for key in ("questions", "readings_running", "readings_queued", "states_writes_waiting"))

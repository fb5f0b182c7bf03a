"""Measure the server's engine: python benchmarks/serving.py --tokenizer FILE --out results.json

    watched    visitors ask at once, each about a picture of its own that was read before: tokens/s in all, the first
               token, and the longest pause within an answer
    reading    the same while a long video is read beside them: also the frames/s of the reading
    alone      the same video without visitors

One JSON line a case. The weights are random (bf16), and the pictures of the video come from memory: its decoding is
measured elsewhere. An answer's text comes in pieces, one for nearly every token. `--size tiny` tries this file with a
tiny model on a CPU.
"""

import argparse
import asyncio
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.inference import video_model
from data_prep.toy.words import build_tokenizer
from ma2mba.inference.sampling import Sampling
from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.config import ModelConfig
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.sizes import SIZES
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.serving import frames_ahead
from ma2mba.serving.contract import Medium, Question, Turn
from ma2mba.serving.engine import ServingEngine
from ma2mba.serving.queues import Limits
from ma2mba.video.decode import Plan
from ma2mba.video.frames import FrameReader
from ma2mba.video.messages import Block

BLOCK = 64
TINY = "tiny"
QUESTION = "What happens in the video after the red star has appeared, and who is there to see it?"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES, TINY], default="2.7b", help="model size (default: %(default)s)")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json of GPT-NeoX; --size tiny needs none")
    parser.add_argument("--visitors", type=int, nargs="+", default=[1, 32], help="visitors that ask at once")
    parser.add_argument("--tokens", type=int, default=300, help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=7200, help="seconds of the long video (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the answers (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="file for the cases, a JSON line each")
    arguments = parser.parse_args()
    if not arguments.tokenizer and arguments.size != TINY:
        parser.error("--tokenizer: is missing. Name the tokenizer.json of GPT-NeoX")
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer)) if arguments.tokenizer else build_tokenizer()
    model = _tiny_model(tokenizer) if arguments.size == TINY else video_model(arguments.size)
    most = max(arguments.visitors)
    frames_ahead.FrameReader = _Reader  # type: ignore[misc, assignment]
    with tempfile.TemporaryDirectory() as folder:
        limits = Limits(places=max(most, 32), client_places=most, client_readings=2 * most)
        engine = ServingEngine(model, tokenizer, limits, Path(folder) / "states")
        cases = asyncio.run(_measure(engine, arguments, Path(folder)))
    text = "".join(json.dumps(case) + "\n" for case in cases)
    if arguments.out:
        arguments.out.write_text(text)
    return 0


def _tiny_model(tokenizer: Tokenizer) -> VideoMa2mba:
    torch.manual_seed(0)
    language = Mamba2Config(
        d_model=32, n_layer=2, d_state=8, headdim=8, ssd_block=16, vocab_size=tokenizer.get_vocab_size()
    )
    vision = ClipConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    return VideoMa2mba(ModelConfig(language_model=language, vision=vision)).eval()


async def _measure(engine: ServingEngine, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    media = [_picture(folder, number) for number in range(max(arguments.visitors))]
    cases = []

    def add(**case: Any) -> None:
        cases.append({"size": arguments.size, **case})
        print(json.dumps(cases[-1]), flush=True)

    held = [engine.read(medium, "measure") for medium in media]
    for one in held:
        await one.wait()
    await _ask_all(engine, media[:1], arguments)  # compiles
    for visitors in arguments.visitors:
        add(case="watched", visitors=visitors, **await _ask_all(engine, media[:visitors], arguments))
    add(case="alone", **await _read_long(engine, folder, arguments.seconds, 0))
    for number, visitors in enumerate(arguments.visitors, 1):
        reading = asyncio.create_task(_read_long(engine, folder, arguments.seconds, number))
        await asyncio.sleep(1)
        figures = await _ask_all(engine, media[:visitors], arguments, while_running=reading)
        add(case="reading", visitors=visitors, **figures, **await reading)
    print(json.dumps(engine.status()), flush=True)
    await engine.stop(0)
    return cases


async def _read_long(engine: ServingEngine, folder: Path, seconds: int, number: int) -> dict[str, Any]:
    path = folder / f"{number}.long"
    path.write_text(f"{seconds} {number}")
    began = time.monotonic()
    held = engine.read(Medium(path, hashlib.sha256(path.read_bytes()).hexdigest(), "video", "long"), "reader")
    progress = await held.wait()
    taken = time.monotonic() - began
    return {"read_seconds": round(taken, 2), "frames_per_second": round(progress.frames / taken, 1)}


@dataclass
class _Answer:
    """When an answer was asked for, and when each piece of the answer came."""

    asked: float
    times: list[float]
    tokens: int


async def _ask_all(
    engine: ServingEngine,
    media: list[Medium],
    arguments: argparse.Namespace,
    while_running: "asyncio.Task[Any] | None" = None,
) -> dict[str, Any]:
    """Let each visitor ask about its medium; again and again while a task runs. Return the figures."""

    async def visit(number: int, medium: Medium) -> list[_Answer]:
        answers = [await _ask(engine, number, medium, arguments)]
        while while_running and not while_running.done():
            answers.append(await _ask(engine, number, medium, arguments))
        return answers

    began = time.monotonic()
    answers = [answer for some in await asyncio.gather(*map(visit, range(len(media)), media)) for answer in some]
    seconds = time.monotonic() - began
    firsts = [answer.times[0] - answer.asked for answer in answers]
    gaps = [after - before for answer in answers for before, after in zip(answer.times, answer.times[1:], strict=False)]
    return {
        "answers": len(answers),
        "tokens_per_second": round(sum(answer.tokens for answer in answers) / seconds),
        "first_token_median": round(statistics.median(firsts), 3),
        "first_token_most": round(max(firsts), 3),
        "longest_pause": round(max(gaps, default=0.0), 3),
    }


async def _ask(engine: ServingEngine, number: int, medium: Medium, arguments: argparse.Namespace) -> _Answer:
    sampling = Sampling(max_tokens=arguments.tokens, temperature=arguments.temperature, seed=number)
    question = Question((Turn("user", (medium, f"{number}. {QUESTION}")),), sampling, f"visitor {number}")
    asked = time.monotonic()
    answering = engine.ask(question)
    times = [time.monotonic() async for piece in answering if piece.text]
    return _Answer(asked, times, answering.usage.answer_tokens)


def _picture(folder: Path, number: int) -> Medium:
    path = folder / f"{number}.png"
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    return Medium(path, hashlib.sha256(path.read_bytes()).hexdigest(), "image", path.name)


class _Reader(FrameReader):
    """Gives pictures of noise for a `.long` file, which says how many seconds it lasts; reads other files."""

    def stream(self, path: Path | str, image_size: int, **options: Any) -> Any:
        if Path(path).suffix != ".long":
            return super().stream(path, image_size, **options)
        seconds, number = map(int, Path(path).read_text().split())
        return _Noise(seconds, number, image_size)


class _Noise:
    """A stream of random pictures, the same block again and again."""

    def __init__(self, seconds: int, number: int, size: int):
        numbers_N = np.arange(seconds)
        self.plan = Plan(numbers_N / 1.0, numbers_N, float(seconds))
        self.shown_N, self.duration, self.frames = numbers_N, float(seconds), seconds
        self._blocks = self._give(
            seconds, np.random.default_rng(number).integers(0, 255, (BLOCK, 3, size, size), np.uint8)
        )

    def _give(self, seconds: int, pictures_MCHW: np.ndarray) -> Iterator[Block]:
        for first in range(0, seconds, BLOCK):
            yield Block(first, pictures_MCHW[: seconds - first])

    def __iter__(self) -> Iterator[Block]:
        return self._blocks

    def __next__(self) -> Block:
        return next(self._blocks)

    def __enter__(self) -> "_Noise":
        return self

    def __exit__(self, *_: object) -> None: ...

    def cancel(self) -> None: ...


if __name__ == "__main__":
    sys.exit(main())

"""What fails costs its own answer or medium, is told to those who wait, and leaves nothing behind."""

import asyncio
import gc
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from ma2mba.errors import UserError
from ma2mba.inference.session import Session
from ma2mba.serving.asked import Asked, OneAnswer
from ma2mba.serving.engine import ServingEngine
from ma2mba.serving.errors import Refused
from ma2mba.serving.places import Places
from ma2mba.serving.queues import Limits
from ma2mba.serving.reading import MediumReading
from tests.unit.serving.engine_media import image, question, text_of, video

ASK = "Which symbol appeared?"


@pytest.fixture
def engine(model, tokenizer, tmp_path) -> Iterator[ServingEngine]:
    one = ServingEngine(model, tokenizer, Limits(places=4, client_places=100), tmp_path / "states")
    yield one
    asyncio.run(one.stop(0))


def wait_until(condition) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_step_that_fails_costs_the_answers_in_the_batch_alone(engine, monkeypatch):
    real, failing = Places.step, [1]

    def step(places):
        if failing:
            failing.pop()
            raise RuntimeError("no")
        return real(places)

    monkeypatch.setattr(Places, "step", step)

    async def ask():
        with pytest.raises(Refused) as caught:
            await text_of(engine, question(ASK, answers=2, max_tokens=5))
        assert caught.value.status == 500
        return await text_of(engine, question(ASK, max_tokens=5))

    assert asyncio.run(ask())
    assert engine.problem() == ""


def test_a_loop_that_cannot_go_on_says_so_to_all(engine, monkeypatch):
    def step(places):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Places, "step", step)

    async def ask():
        many = [text_of(engine, question(ASK, client=str(n), max_tokens=5)) for n in range(6)]
        return await asyncio.wait_for(asyncio.gather(*many, return_exceptions=True), 30)

    assert {error.status for error in asyncio.run(ask())} <= {500, 503}
    wait_until(engine.problem)
    assert "illegal memory access" in engine.problem()
    with pytest.raises(Refused, match="Restart the server") as caught:
        engine.ask(question(ASK))
    assert caught.value.status == 503


def test_one_answer_that_fails_leaves_the_others(engine, monkeypatch):
    real = OneAnswer.add

    def add(answer, token):
        if answer.asked.client == "bad" and answer.asked.usage.answer_tokens == 2:
            raise UserError("the model's output is not a number (NaN). Use the weights of another checkpoint")
        real(answer, token)

    monkeypatch.setattr(OneAnswer, "add", add)

    async def ask():
        clients = ("good", "bad", "fine")
        asked = [text_of(engine, question(ASK, client=one, max_tokens=20, temperature=2.0, seed=1)) for one in clients]
        return await asyncio.gather(*asked, return_exceptions=True)

    good, bad, fine = asyncio.run(ask())
    assert good == fine
    assert "not a number" in str(bad)


def test_too_little_memory_for_a_video_fails_it_alone(engine, monkeypatch, tmp_path):
    real, big = Session.read_by_layers, video(tmp_path / "big.mkv", 40)

    def read(session, ids_T, visual_T, frames_MCHW):
        if len(frames_MCHW) == 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(session, ids_T, visual_T, frames_MCHW)

    monkeypatch.setattr(Session, "read_by_layers", read)

    async def ask():
        with pytest.raises(Refused, match=r"big\.mkv: the server has too little memory"):
            await text_of(engine, question(big, ASK))
        return await text_of(engine, question(video(tmp_path / "b.mkv", 3, 50), ASK, max_tokens=4))

    assert asyncio.run(ask())


def test_a_deleted_file_is_read_from_the_other_client_s_copy(engine, tmp_path):
    first = video(tmp_path / "a.mkv", 5)
    copy = tmp_path / "b.mkv"
    shutil.copy(first.path, copy)
    engine._queues.limits = replace(engine._queues.limits, readers=0)  # nothing starts
    held = engine.read(first, "a"), engine.read(replace(first, path=copy, name="my copy.mkv"), "b")
    first.path.unlink()
    engine._queues.limits = replace(engine._queues.limits, readers=2)
    held[0].release()

    assert asyncio.run(held[1].wait()).frames == 5


def test_stop_lets_answers_end_within_the_grace(model, tokenizer):
    engine = ServingEngine(model, tokenizer, Limits(places=2))

    async def ask():
        short = asyncio.create_task(text_of(engine, question(ASK, client="a", max_tokens=5)))
        long = asyncio.create_task(text_of(engine, question(ASK, client="b", max_tokens=10**6, temperature=3.0)))
        ended = asyncio.create_task(text_of(engine, question(ASK, client="c", max_tokens=10**6, temperature=3.0)))
        await asyncio.sleep(0.05)
        await engine.stop(1.0)
        return await asyncio.gather(short, long, ended, return_exceptions=True)

    short, *others = asyncio.run(ask())
    assert isinstance(short, str)
    assert all(isinstance(other, str) or other.status == 503 for other in others)


def test_a_forgotten_video_leaves_no_state_also_when_it_is_being_read(engine, tmp_path):
    one = video(tmp_path / "a.mkv", 4)
    held = engine.read(one, "a")
    engine.forget(one.content)
    assert asyncio.run(held.wait()).state == "ready"
    held.release()
    wait_until(lambda: not engine.status()["states_device"] and not engine.status()["states_writes_waiting"])
    assert list((tmp_path / "states").glob("*.state")) == []


def test_an_answer_about_a_known_video_comes_while_a_long_one_is_read(engine, tmp_path, monkeypatch):
    monkeypatch.setattr("ma2mba.serving.loop.SLICE", 0.005)
    known, long = video(tmp_path / "a.mkv", 4), video(tmp_path / "b.mkv", 600, 100)

    async def ask():
        await text_of(engine, question(known, ASK, max_tokens=2))
        held = engine.read(long, "other")
        while held.progress.frames == 0:
            await asyncio.sleep(0.001)
        text = await text_of(engine, question(known, ASK, max_tokens=2))
        return text, held.progress

    text, progress = asyncio.run(ask())
    assert text is not None
    assert progress.state == "reading"


def test_nothing_of_ended_questions_and_readings_stays(engine, tmp_path):
    async def ask():
        for number in range(30):
            one = image(tmp_path / f"{number}.png", number)
            async for _ in engine.ask(question(one, ASK, client=str(number), max_tokens=3)):
                if number % 3 == 0:
                    break

    asyncio.run(ask())
    wait_until(lambda: not engine.status()["questions"] and not engine.status()["places_taken"])
    gc.collect()
    alive = [thing for thing in gc.get_objects() if isinstance(thing, Asked | MediumReading)]
    assert alive == []
    assert engine._queues.readings() == []

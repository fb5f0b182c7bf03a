"""The engine gives each client the answer that VideoChat gives it alone, whatever the others do meanwhile."""

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ma2mba.errors import UserError
from ma2mba.inference.chat import VideoChat
from ma2mba.serving.contract import Busy, Question, Turn
from ma2mba.serving.engine import ServingEngine
from ma2mba.serving.errors import Refused
from ma2mba.serving.queues import Limits
from ma2mba.serving.reading import MediumReading
from tests.unit.serving.engine_media import image, question, text_of, video

TEXTS = ("Which symbol appeared?", "How many scenes were there?", "What is shown?", "Where was the red star?")


@pytest.fixture
def engine(model, tokenizer, tmp_path) -> Iterator[ServingEngine]:
    one = ServingEngine(model, tokenizer, Limits(places=4, client_places=100), tmp_path / "states")
    yield one
    asyncio.run(one.stop(0))


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    return [video(folder / f"{n}.mkv", seconds, n * 100) for n, seconds in enumerate((5, 12, 300))]


@pytest.fixture(scope="module")
def chats(model, tokenizer, media):
    """Return for each medium the chat that has watched it."""
    chats = [VideoChat(model, tokenizer) for _ in media]
    for chat, medium in zip(chats, media, strict=True):
        chat.watch(medium.path, hashed=False)
    return chats


def test_an_answer_is_that_of_a_chat(engine, media, chats):
    async def ask():
        return [await text_of(engine, question(medium, TEXTS[0], max_tokens=20)) for medium in media]

    assert asyncio.run(ask()) == [chat.ask(TEXTS[0], max_tokens=20).text for chat in chats]


def test_text_alone_is_answered(engine, model, tokenizer):
    expected = VideoChat(model, tokenizer).ask(TEXTS[1], max_tokens=20).text
    assert asyncio.run(text_of(engine, question(TEXTS[1], max_tokens=20))) == expected


@pytest.mark.parametrize("seed", range(3))
def test_answers_that_join_leave_and_are_cancelled_at_random_do_not_mix(engine, media, chats, seed):
    rng = random.Random(seed)
    print("seed", seed)
    cases = []
    for number in range(40):
        which, text = rng.randrange(3), rng.choice(TEXTS) * rng.choice([1, 1, 8])
        options = {"max_tokens": rng.randint(1, 25), "seed": number}
        if rng.random() < 0.6:
            options |= {"temperature": rng.choice([0.5, 1.0, 2.0]), "top_p": rng.choice([0.8, 1.0])}
        cases.append((which, text, options, rng.random() < 0.2, rng.random() * 2))

    async def one(which, text, options, cancelled, delay):
        await asyncio.sleep(delay)
        asked = engine.ask(question(media[which], text, client=f"c{which}", **options))
        found = ""
        async for piece in asked:
            found += piece.text
            if cancelled and piece.reason is None:
                asked.cancel()
                return None
        return found

    async def all_of():
        return await asyncio.gather(*(one(*case) for case in cases))

    found = asyncio.run(all_of())
    for text, (which, asked, options, _, _) in zip(found, cases, strict=True):
        if text is not None:
            assert text == chats[which].ask(asked, **options).text, (seed, asked, options)
    assert sum(text is not None for text in found) > 25
    time.sleep(0.2)
    assert engine.status()["places_taken"] == engine.status()["questions"] == 0


def test_a_conversation_about_two_videos_and_an_image(engine, model, tokenizer, media, tmp_path):
    chat, shown = VideoChat(model, tokenizer), image(tmp_path / "a.png", 700)
    chat.watch(media[0].path, hashed=False)
    chat.watch(media[1].path, hashed=False)
    chat.said(TEXTS[0], "a red star")
    chat.watch(shown.path, hashed=False)
    expected = chat.ask(TEXTS[1], max_tokens=20).text
    turns = (
        Turn("user", (media[0], TEXTS[0], media[1])),
        Turn("assistant", ("a red star",)),
        Turn("user", (TEXTS[1], shown)),
    )
    asked = replace(question(TEXTS[1], max_tokens=20), turns=turns)
    assert asyncio.run(text_of(engine, asked)) == expected


def test_a_known_video_is_not_read_again_even_by_another_server(engine, model, tokenizer, media, tmp_path):
    async def ask(engine, text):
        asked = engine.ask(question(media[1], text, max_tokens=8))
        found = "".join([piece.text async for piece in asked])
        return found, asked.usage

    first, usage = asyncio.run(ask(engine, TEXTS[0]))
    assert usage.cached_tokens == 0
    _, usage = asyncio.run(ask(engine, TEXTS[1]))
    assert usage.cached_tokens > 12 * 4
    assert usage.seconds_of_video == 12
    assert engine.status()["frames_read_total"] == 12
    asyncio.run(engine.stop(0))
    other = ServingEngine(model, tokenizer, Limits(places=2), tmp_path / "states")
    again, usage = asyncio.run(ask(other, TEXTS[0]))
    assert again == first
    assert usage.cached_tokens > 12 * 4
    assert other.status()["frames_read_total"] == 0
    asyncio.run(other.stop(0))


def test_equal_media_are_read_once_and_progress_is_told(engine, media):
    async def read():
        first, second = engine.read(media[2], "a"), engine.read(media[2], "b")
        told = [progress async for progress in first.events()]
        assert (await second.wait()).state == "ready"
        return told

    told = asyncio.run(read())
    assert told[-1].state == "ready"
    assert (told[-1].frames, told[-1].total, told[-1].seconds) == (300, 300, 300.0)
    assert [p.frames for p in told] == sorted(p.frames for p in told)
    assert engine.status()["frames_read_total"] == 300


def test_a_reading_that_nobody_waits_for_is_stopped(engine, media):
    held = engine.read(media[2], "a")
    held.release()
    until = time.monotonic() + 10
    while engine.status()["readings_queued"] + engine.status()["readings_running"] and time.monotonic() < until:
        time.sleep(0.01)
    assert engine._queues.readings() == []
    assert engine.status()["frames_read_total"] < 300
    assert asyncio.run(text_of(engine, question(media[2], TEXTS[0], max_tokens=4))) is not None


def test_a_broken_file_is_explained_and_harms_nobody(engine, media, chats, tmp_path):
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(b"no video" * 100)
    bad = replace(media[0], path=broken, content="0" * 64, name="my film.mkv")

    async def ask():
        with pytest.raises(Refused, match=r"^my film\.mkv: ") as caught:
            await text_of(engine, question(bad, TEXTS[0]))
        assert str(tmp_path) not in str(caught.value)
        return await text_of(engine, question(media[0], TEXTS[0], max_tokens=20))

    assert asyncio.run(ask()) == chats[0].ask(TEXTS[0], max_tokens=20).text


def test_several_answers_have_seeds_of_their_own(engine, media, chats):
    async def ask():
        texts = ["", "", ""]
        asked = engine.ask(question(media[0], TEXTS[0], answers=3, temperature=2.0, seed=5, max_tokens=12))
        async for piece in asked:
            texts[piece.answer] += piece.text
        return texts, asked.usage

    texts, usage = asyncio.run(ask())
    assert texts == [chats[0].ask(TEXTS[0], temperature=2.0, seed=5 + n, max_tokens=12).text for n in range(3)]
    assert len(set(texts)) == 3
    assert usage.seeds == [5, 6, 7]


def test_logprobs_and_alternatives(engine, media, chats):
    asked = replace(question(media[0], TEXTS[0], max_tokens=6), alternatives=3)

    async def ask():
        return [piece async for piece in engine.ask(asked)]

    tokens = [token for piece in asyncio.run(ask()) for token in zip(piece.tokens, piece.alternatives, strict=True)]
    right = chats[0].ask(TEXTS[0], max_tokens=6, logprobs=True)
    assert [own.token for own, _ in tokens] == right.tokens
    assert [own.logprob for own, _ in tokens] == pytest.approx(right.logprobs, abs=1e-4)
    for own, others in tokens:
        assert len(others) == 3
        assert others[0] == own, "greedy takes the likeliest"
        assert [other.logprob for other in others] == sorted((other.logprob for other in others), reverse=True)


def test_full_queues_say_busy(model, tokenizer, media):
    engine = ServingEngine(model, tokenizer, Limits(places=2, waiting=3, client_places=3, client_readings=1))
    long = [question(TEXTS[0], client=f"c{n}", max_tokens=4000, temperature=3.0) for n in range(9)]
    asked = [engine.ask(one) for one in long[:5]]
    with pytest.raises(Busy, match="too many questions"):
        engine.ask(long[5])
    asked[0].cancel()
    time.sleep(0.5)
    asked[0] = engine.ask(replace(long[0], answers=2))
    with pytest.raises(Busy, match="2 unfinished"):
        engine.ask(replace(long[0], answers=2))
    with pytest.raises(UserError, match="n: 9"):
        engine.ask(replace(long[0], answers=9))
    held = engine.read(media[2], "a")
    with pytest.raises(Busy, match="videos"):
        engine.read(media[1], "a")
    held.release()
    asyncio.run(engine.stop(0))
    with pytest.raises(Refused, match="stopped"):
        engine.ask(long[5])


def test_a_client_with_many_questions_does_not_keep_the_others_waiting(model, tokenizer):
    engine = ServingEngine(model, tokenizer, Limits(places=2))
    ended = []

    async def one(client):
        await text_of(engine, question(TEXTS[0], client=client, max_tokens=60, temperature=3.0, seed=1))
        ended.append(client)

    async def all_of():
        many = [asyncio.create_task(one("many")) for _ in range(10)]
        await asyncio.sleep(0)
        await asyncio.gather(*many, asyncio.create_task(one("few")))

    asyncio.run(all_of())
    assert ended.index("few") <= 4, "the next one that gets a place"
    asyncio.run(engine.stop(0))


def test_readings_take_turns_between_clients(engine, tmp_path):
    """With two decoders, a client's third video waits, and another client's first does not wait for it."""
    engine._queues.limits = replace(engine._queues.limits, readers=0)
    clips = [video(tmp_path / f"{n}.mkv", 3, n * 10) for n in range(4)]
    held = [engine.read(clip, client) for clip, client in zip(clips, "aaab", strict=True)]
    assert [one.progress.waiting for one in held] == [0, 1, 2, 3]
    begun = []
    real = MediumReading.begin

    def begin(reading, *arguments):
        begun.append(held_by[reading.prefix.medium.path])
        real(reading, *arguments)

    held_by = {clip.path: number for number, clip in enumerate(clips)}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MediumReading, "begin", begin)
        engine._queues.limits = replace(engine._queues.limits, readers=2)
        engine._woken.set()

        async def wait():
            for one in held:
                await one.wait()

        asyncio.run(wait())
    assert begun[:2] == [0, 3]


def test_a_question_is_answered_while_its_video_is_read(engine, media, monkeypatch):
    """The answer is about the frames so far, and comes before the reading ends."""
    monkeypatch.setattr("ma2mba.serving.loop.SLICE", 0.0)  # a layer at a time
    held = engine.read(media[2], "a")

    async def ask():
        asked = engine.ask(question(media[2], TEXTS[0], so_far=True, max_tokens=3))
        async for _ in asked:
            pass
        return asked.usage, held.progress

    usage, progress = asyncio.run(ask())
    assert 0 < usage.seconds_of_video < 300
    assert progress.state == "reading"


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ((Turn("assistant", ("a",)),), "alternate"),
        ((Turn("user", ("a",)), Turn("assistant", ("a",))), "alternate"),
        ((Turn("user", (" ",)),), "no text"),
        ((Turn("user", ()),), "no text"),
    ],
)
def test_a_bad_conversation_is_refused_at_once(engine, turns, said):
    with pytest.raises(UserError, match=said):
        engine.ask(Question(turns, question("a").sampling, "a"))

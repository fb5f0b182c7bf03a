"""Watching while it comes gives the bits of watching a file, at every frame; N frames."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from ma2mba.errors import UserError
from ma2mba.inference.chat import VideoChat
from ma2mba.inference.interleaved import with_frames
from ma2mba.inference.live import LiveWatch, Seen
from ma2mba.inference.session import Session
from ma2mba.inference.state_file import Watched
from ma2mba.video.errors import MediaError
from ma2mba.video.live import Ended, LiveStream, Notice, Picture
from ma2mba.video.stream import Cancelled
from tests.checkout import ROOT
from tests.unit.video.live_files import mpegts
from tests.unit.video.numbered_video import write

SIZE, K = 56, 4
QUESTION = "Which symbol appeared?"


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8)


class Script:
    """Stands for a LiveStream: gives items, and waits at a function among them until it returns."""

    label = "script"

    def __init__(self, *items: Picture | Notice | Exception | Callable[[], object], ended: Ended | None = None):
        self._items, self.given, self.cancelled = items, 0, threading.Event()
        self.ended = ended or Ended("it ended")

    def begin(self, image_size: int) -> None:
        assert image_size == SIZE

    def cancel(self) -> None:
        self.cancelled.set()

    def __iter__(self) -> Iterator[Picture | Notice]:
        for item in self._items:
            if self.cancelled.is_set():
                raise Cancelled
            if isinstance(item, Exception):
                raise item
            if callable(item):
                item()
                continue
            self.given += 1
            yield item


def frames(count: int, first: int = 0, each: int = 1, due: float | None = None) -> list[Picture]:
    """Return different pictures, each shown for `each` seconds."""
    now = time.monotonic() if due is None else due
    return [Picture(n * each, each, picture(n), now) for n in range(first, first + count)]


def bits(session: Session) -> list[bytes]:
    return [part.numpy().tobytes() for state in session.states for part in state] + [session.logits().numpy().tobytes()]


def by_hand(chat: VideoChat, shown_N: list[int], chunk_tokens: int | None = None) -> Session:
    """Return a session that has read the frames in one feed, after the tokens before a first video."""
    session, before = chat.before_video()
    session = Session(session.model, session.tokenizer, chunk_tokens)
    ids_S, visual_S = with_frames(before, [len(before)] * len(shown_N), K, np.array(shown_N))
    session.feed(ids_S, visual_S, torch.from_numpy(np.stack([picture(n) for n in range(max(shown_N) + 1)])))
    return session


def answer(chat: VideoChat) -> tuple[str, list[float]]:
    """Return the answer and its log-probabilities: a random model may give one text to different videos."""
    found = chat.ask(QUESTION, max_tokens=6, logprobs=True)
    return found.text, found.logprobs


def asked_by_hand(chat: VideoChat, shown_N: list[int]) -> tuple[str, list[float]]:
    seen = Watched(name="script", content=None, seconds=0.0, frames=0, sampling="1fps", live=True)
    return answer(chat.after_video(by_hand(chat, shown_N), seen))


@pytest.fixture
def chat(model, tokenizer) -> VideoChat:
    return VideoChat(model, tokenizer)


@pytest.mark.parametrize("chunk_tokens", [2, 3, 5, 16, 30, 4096])
def test_after_every_frame_the_states_have_the_bits_of_one_feed(chat, chunk_tokens):
    session, before = chat.before_video()
    seen, shown_N = Seen(Session(session.model, session.tokenizer, chunk_tokens), tuple(before)), []
    for number, again in enumerate([0, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 0]):
        shown_N.append(shown_N[-1] + 1 - again if number else 0)
        seen = seen.add(picture(shown_N[-1]), again=bool(again))
        while seen.full:
            seen = seen.read()
        assert seen.frames == number + 1
        assert len(seen.shown) * K <= chunk_tokens + K
        assert len(seen.pictures) <= len(seen.shown) + 1
        assert bits(seen.all_read()) == bits(by_hand(chat, shown_N, chunk_tokens))


def test_a_question_in_the_middle_is_about_the_frames_so_far(chat):
    asked, more = threading.Event(), threading.Event()
    script = Script(*frames(3, each=2), more.set, asked.wait, *frames(30, first=3, each=2))
    told = []
    with LiveWatch(chat, script, told.append) as watch:
        more.wait()
        with watch.so_far() as talk:
            first = answer(talk)
            assert (talk.watched[-1].frames, talk.watched[-1].seconds, talk.watched[-1].live) == (6, 6, True)
        assert not watch.ended
        asked.set()
        watch.wait_for_end()
        with watch.so_far() as talk:
            second = answer(talk)
    assert first == asked_by_hand(chat, [0, 0, 1, 1, 2, 2])
    assert second == asked_by_hand(chat, [n // 2 for n in range(66)])
    assert first != second
    assert told == ["ended after 66 s: it ended"]
    assert chat.watched == ()


def test_the_stream_waits_while_the_model_answers(model, tokenizer, monkeypatch):
    monkeypatch.setattr("ma2mba.inference.session.CHUNK_TOKENS", {"cpu": 10 * K})
    chat, script = VideoChat(model, tokenizer), Script(*frames(500))
    with LiveWatch(chat, script, lambda _: None) as watch:
        with watch.so_far() as talk:
            seen = talk.watched[-1].frames
            time.sleep(0.3)
            held = script.given
            time.sleep(0.1)
            assert script.given == held <= seen + 12
        while not watch.ended:
            assert len(watch._seen.pictures) <= 11
        with watch.so_far() as talk:
            assert talk.watched[-1].frames == 500


def test_being_behind_is_told_whenever_it_doubles(chat):
    now = time.monotonic()
    late = [frames(1, n, due=now - behind)[0] for n, behind in enumerate([1, 29, 31, 40, 59, 70, 100, 150, 5, 33])]
    told = []
    with LiveWatch(chat, Script(*late), told.append) as watch:
        watch.wait_for_end()
    assert [line.split(" behind")[0] for line in told[:-1]] == ["31 s", "70 s", "150 s", "33 s"]
    assert watch.behind == pytest.approx(33, abs=5)


def test_notices_are_told(chat):
    told = []
    with LiveWatch(chat, Script(*frames(2), Notice("its clock jumps"), *frames(1, 2)), told.append) as watch:
        watch.wait_for_end()
    assert told == ["its clock jumps", "ended after 3 s: it ended"]


@pytest.mark.parametrize("how", ["ended", "error"])
def test_what_was_seen_before_damage_stays(chat, how):
    end = [MediaError("script", "the decoder crashed")] if how == "error" else []
    told = []
    script = Script(*frames(3), *end, ended=Ended("the decoder crashed", "the decoder crashed"))
    with LiveWatch(chat, script, told.append) as watch:
        watch.wait_for_end()
        with watch.so_far() as talk:
            assert answer(talk) == asked_by_hand(chat, [0, 1, 2])
            assert (talk.watched[-1].partial, talk.watched[-1].damage) == (3, "the decoder crashed")
    assert told == ["ended after 3 s: the decoder crashed"]


def test_a_source_without_frames_is_refused(chat):
    with LiveWatch(chat, Script(MediaError("script", "no video")), lambda _: None) as watch:
        with pytest.raises(MediaError, match="no video"):
            watch.wait()
        with pytest.raises(MediaError, match="no video"), watch.so_far():
            pass


def test_an_error_in_the_thread_is_raised_at_the_next_question(chat):
    with LiveWatch(chat, Script(*frames(2), RuntimeError("bug")), lambda _: None) as watch:
        watch.wait_for_end()
        with pytest.raises(RuntimeError, match="bug"), watch.so_far():
            pass


def test_the_block_ends_while_the_source_goes_on(chat):
    script = Script(*frames(2), *[lambda: time.sleep(0.05)] * 1000)
    with LiveWatch(chat, script, lambda _: None) as watch:
        watch.wait()
    assert watch.ended
    assert script.cancelled.is_set()


def test_a_state_is_saved_loaded_and_equal_to_the_file_watched_whole(chat, tmp_path):
    path = tmp_path / "a.mkv"
    write(path, [500 * k for k in range(40)], Fraction(1, 1000), codec="mpeg4", options={})
    with LiveStream(str(path), 0.5) as stream, LiveWatch(chat, stream, lambda _: None) as watch:
        watch.wait_for_end()
        with watch.so_far() as talk:
            talk.save(tmp_path / "a.state")
    loaded = chat.load(tmp_path / "a.state")
    assert loaded.watched[0].name == "a.mkv"
    assert (loaded.watched[0].live, loaded.watched[0].content, loaded.watched[0].frames) == (True, None, 20)
    chat.watch(path)
    assert bits(loaded.before_video()[0]) == bits(chat.before_video()[0])
    assert answer(loaded) == answer(chat)
    unhashed = chat.fork()
    unhashed.watch(path, hashed=False)
    with pytest.raises(UserError, match="was watched without its hash"):
        unhashed.save(tmp_path / "b.state")


def peak_mb(seconds: int, folder: Path) -> float:
    """Return the peak memory of a process that watches a stream of this length."""
    path = mpegts(folder / f"{seconds}.ts", seconds, fps=1)
    command = [sys.executable, "-m", "tests.unit.inference.peak_memory", str(path), "--live"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
    frames, peak = map(float, done.stdout.split())
    assert frames == seconds
    return peak


def test_memory_does_not_grow_with_the_stream(tmp_path):
    assert peak_mb(1500, tmp_path) == pytest.approx(peak_mb(600, tmp_path), rel=0.05)

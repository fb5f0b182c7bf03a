"""A video that is watched as it is decoded gives the bits of a video that is read whole; M pictures, N frames."""

import copy
import threading
import time
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from ma2mba.data.cuts import cuts
from ma2mba.errors import UserError
from ma2mba.inference.ahead import ahead
from ma2mba.inference.interleaved import Interleaved, with_frames
from ma2mba.inference.session import Session
from ma2mba.inference.watch import watch
from ma2mba.model.conversation import Encoded
from ma2mba.video.blocks import FrameSet
from ma2mba.video.decode import decode_video
from ma2mba.video.errors import MediaError
from ma2mba.video.frames import FrameReader
from ma2mba.video.pictures import clip_view
from tests.unit.inference.fake_stream import SIZE, FakeStream, block, plan
from tests.unit.video.numbered_video import write

MS = Fraction(1, 1000)
K = 4


def bits(session: Session) -> list[bytes]:
    return [part.cpu().numpy().tobytes() for state in session.states for part in state] + [
        session.logits().cpu().numpy().tobytes()
    ]


def read_whole(session: Session, prompt, found) -> Session:
    encoded = prompt(len(found.shown_N))
    head = encoded.token_ids[: encoded.frame_positions[-1]]
    ids_S, visual_S = with_frames(head, encoded.frame_positions, K, found.shown_N)
    session.feed(ids_S, visual_S, torch.from_numpy(found.pictures_MCHW))
    return session


@pytest.mark.parametrize("chunk_tokens", [5, 16, 50, 4096])
@pytest.mark.parametrize("count", [None, 7])
def test_the_states_have_the_bits_of_a_video_that_is_read_whole(
    model, tokenizer, video, prompt, chunk_tokens, count, monkeypatch
):
    monkeypatch.setattr("ma2mba.video.blocks.BLOCK_BYTES", 3 * 3 * SIZE * SIZE)
    started, told = Session(model, tokenizer, chunk_tokens), []
    started.feed_text([3, 1, 4])
    before = bits(started)
    with FrameReader() as reader:
        expected = bits(read_whole(started.fork(), prompt, reader.read(video, SIZE, count=count)))
        with reader.stream(video, SIZE, count=count) as stream:
            assert bits(watch(started, prompt, stream, told.append)) == expected
        assert len(reader.read(video, SIZE, count=2).shown_N) == 2, "the worker goes on"
    assert bits(started) == before
    assert (told[0].frames, told[0].seconds) == (0, 0.0)
    assert (told[-1].frames, told[-1].seconds) == (told[0].total, stream.duration)
    assert [p.frames for p in told] == sorted(p.frames for p in told)


def test_a_part_and_the_chunks_are_those_of_the_whole_sequence():
    rng = np.random.default_rng(0)
    for _ in range(200):
        frames, text = int(rng.integers(1, 12)), int(rng.integers(0, 9))
        shown_N = np.cumsum(rng.integers(0, 2, frames))
        positions = sorted(rng.integers(0, text + 1, frames).tolist())
        ids = rng.integers(1, 99, text).tolist()
        ids_S, visual_S = with_frames(ids, positions, K, shown_N)
        sequence = Interleaved(Encoded(ids, frame_positions=positions), K, shown_N)
        assert sequence.tokens == len(ids_S)
        start, stop = sorted(rng.integers(0, len(ids_S) + 1, 2).tolist())
        assert torch.equal(sequence.part(start, stop)[0], ids_S[start:stop])
        assert torch.equal(sequence.part(start, stop)[1], visual_S[start:stop])
        length = int(rng.integers(1, 20))
        assert list(sequence.chunks(length)) == list(pairwise(cuts(visual_S[None], length, K)))


WHOLE = (plan(9, 6), block(0, 4), block(4, 2))


def test_a_file_that_is_decoded_again_starts_from_the_state_before_it(model, tokenizer, prompt):
    started = Session(model, tokenizer, chunk_tokens=9)
    with FakeStream(plan(20, 20), block(0, 12, colour=50), *WHOLE) as stream:
        again = watch(started, prompt, stream)
    with FakeStream(*WHOLE) as stream:
        once = watch(started, prompt, stream)
    assert bits(again) == bits(once)
    assert started.states is None


@pytest.mark.parametrize(
    ("end", "partial", "said"), [("error", 3.0, "damaged"), ("crash", 8.0, "crashed (exit code 7)")]
)
def test_a_video_that_breaks_half_way_changes_nothing_and_says_how_far(model, tokenizer, prompt, end, partial, said):
    started = Session(model, tokenizer, chunk_tokens=9)
    with FakeStream(plan(20, 20), block(0, 9), end) as stream, pytest.raises(MediaError) as caught:
        watch(started, prompt, stream)
    assert said in caught.value.reason
    assert caught.value.partial == partial
    assert started.states is None


def test_damage_after_the_last_picture_is_noticed(model, tokenizer, prompt):
    with FakeStream(*WHOLE, "error") as stream, pytest.raises(MediaError, match="damaged"):
        watch(Session(model, tokenizer, 9), prompt, stream)


def test_pictures_that_are_missing_are_noticed(model, tokenizer, prompt):
    with FakeStream(*WHOLE[:2]) as stream, pytest.raises(RuntimeError, match="4 of 6 pictures came"):
        watch(Session(model, tokenizer, 9), prompt, stream)


def test_an_interrupt_ends_the_worker_and_the_thread(model, tokenizer, prompt, video):
    def stop(progress):
        if progress.frames:
            raise KeyboardInterrupt

    began = time.monotonic()
    with FrameReader() as reader:
        with reader.stream(video, SIZE) as stream, pytest.raises(KeyboardInterrupt):
            watch(Session(model, tokenizer, 9), prompt, stream, stop)
        assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]
        assert len(reader.read(video, SIZE, count=3).shown_N) == 3
    assert time.monotonic() - began < 20


def test_a_damaged_video_is_named_with_its_intact_seconds(model, tokenizer, prompt, tmp_path):
    write(tmp_path / "a.mkv", [1000 * k for k in range(40)], MS, codec="mpeg4", options={"g": "5"})
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) // 2])
    with (
        FrameReader() as reader,
        reader.stream(tmp_path / "a.mkv", SIZE) as stream,
        pytest.raises(UserError, match=r"a\.mkv: ") as caught,
    ):
        watch(Session(model, tokenizer), prompt, stream)
    assert 10 < caught.value.partial < 30


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_bits_of_a_video_that_is_read_whole(model, tokenizer, prompt):
    """Pictures go through pinned memory and a second stream."""
    started = Session(copy.deepcopy(model).cuda(), tokenizer, chunk_tokens=9)
    found = FrameSet(np.concatenate([part.pictures_MCHW for part in WHOLE[1:]]), WHOLE[0].shown_N, 9.0)
    expected = bits(read_whole(started.fork(), prompt, found))
    for _ in range(20):
        with FakeStream(*WHOLE) as stream:
            assert bits(watch(started, prompt, stream)) == expected


def test_two_items_exist_at_most():
    alive, most = 0, 0

    def items():
        nonlocal alive, most
        for number in range(20):
            alive += 1
            most = max(most, alive)
            yield number

    with ahead(items(), lambda: None) as made:
        seen = []
        for number in made:
            time.sleep(0.002)
            seen.append(number)
            alive -= 1
    assert seen == list(range(20))
    assert most == 2


@pytest.mark.parametrize("chunk_tokens", [5, 16, 50, 4096])
@pytest.mark.parametrize("count", [None, 7])
def test_a_damaged_video_may_be_kept_up_to_the_damage(
    model, tokenizer, video, prompt, chunk_tokens, count, tmp_path, monkeypatch
):
    monkeypatch.setattr("ma2mba.video.blocks.BLOCK_BYTES", 3 * 3 * SIZE * SIZE)
    broken, session = tmp_path / "broken.mkv", Session(model, tokenizer, chunk_tokens)
    content = video.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    pictures = decode_video(broken, lambda picture: clip_view(picture, SIZE), count=count, keep_damaged=True)
    shown_N = np.unique([sample.index for sample in pictures.samples], return_inverse=True)[1]
    different = [pictures.samples[n].value for n in np.unique(shown_N, return_index=True)[1]]
    intact = FrameSet(np.stack(different).transpose(0, 3, 1, 2).copy(), shown_N, pictures.duration)
    with FrameReader() as reader:
        with reader.stream(broken, SIZE, count=count, keep_damaged=True) as stream:
            kept = watch(session, prompt, stream)
        assert stream.damage is not None
        assert (stream.frames, stream.seconds) == (len(shown_N), stream.damage.partial)
        with reader.stream(video, SIZE, count=count, keep_damaged=True) as stream:
            watch(session, prompt, stream)
        assert (stream.damage, stream.frames) == (None, count or 40)
    expected = read_whole(session.fork(), prompt, intact)
    torch.testing.assert_close(kept.logits(), expected.logits(), rtol=0, atol=1.5e-6)
    for some, right in zip(kept.states, expected.states, strict=True):
        torch.testing.assert_close(some, right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [5, 8, 16, 4096])
@pytest.mark.parametrize(("received", "seen"), [(1, 1), (3, 3), (6, 8)])
@pytest.mark.parametrize("fault", ["error", "crash"])
def test_of_a_video_that_breaks_while_it_is_decoded_every_frame_before_counts(
    model, tokenizer, prompt, chunk_tokens, received, seen, fault
):
    """Frames 5, 6 and 7 of the plan show picture 5. What came before the damage is read, and nothing else."""
    session = Session(model, tokenizer, chunk_tokens)
    with FakeStream(plan(8, 6), block(0, received), fault, keep_damaged=True) as stream:
        kept = watch(session, prompt, stream)
    assert stream.damage is not None
    assert stream.frames == seen
    pictures_MCHW, shown_N = block(0, received).pictures_MCHW, plan(8, 6).shown_N[:seen]
    expected = read_whole(session.fork(), prompt, FrameSet(pictures_MCHW, shown_N, 8.0))
    assert bits(kept) == bits(expected)

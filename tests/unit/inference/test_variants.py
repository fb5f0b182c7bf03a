"""Variants of a video, watched together, have the states of videos with the changed frames."""

import numpy as np
import pytest
import torch

from ma2mba.errors import UserError
from ma2mba.inference.interleaved import with_frames
from ma2mba.inference.session import Session
from ma2mba.inference.variants import Change, watch_variants
from ma2mba.video.frames import FrameReader
from tests.unit.inference.fake_stream import SIZE, FakeStream, block, plan

K = 4


def invert(picture_HWC: np.ndarray) -> None:
    picture_HWC[:40] = 255 - picture_HWC[:40]


def change(*seconds: int) -> Change:
    return Change(lambda second: second in seconds, invert)


def expected(session: Session, prompt, found, seconds) -> list[torch.Tensor]:
    """Return the states after a video whose frames at these seconds are changed."""
    pictures_NCHW = found.pictures_MCHW[found.shown_N].copy()
    for second in seconds:
        pictures_NCHW[second, :, :40] = 255 - pictures_NCHW[second, :, :40]
    encoded = prompt(len(pictures_NCHW))
    head = encoded.token_ids[: encoded.frame_positions[-1]]
    session.feed(*with_frames(head, encoded.frame_positions, K), torch.from_numpy(pictures_NCHW))
    return [*(part for state in session.states for part in state), session.logits()]


def states(session: Session) -> list[torch.Tensor]:
    return [*(part for state in session.states for part in state), session.logits()]


@pytest.mark.parametrize("chunk_tokens", [3, 16, 50, 4096])
def test_each_variant_has_the_states_of_its_own_video(model, tokenizer, video, prompt, chunk_tokens, monkeypatch):
    monkeypatch.setattr("ma2mba.video.blocks.BLOCK_BYTES", 3 * 3 * SIZE * SIZE)
    changed = [(32,), (), (39,), (23, 24), (0, 30)]
    session = Session(model, tokenizer, chunk_tokens)
    with FrameReader() as reader:
        found = reader.read(video, SIZE)
        with reader.stream(video, SIZE) as stream:
            variants = watch_variants(session, prompt, stream, [change(*seconds) for seconds in changed])
    assert session.states is None
    all_states = [states(variant) for variant in variants]
    for seconds, got in zip(changed, all_states, strict=True):
        for one, two in zip(got, expected(session.fork(), prompt, found, seconds), strict=True):
            torch.testing.assert_close(one, two)
    logits = torch.stack([got[-1] for got in all_states])
    assert torch.cdist(logits, logits).fill_diagonal_(1).min() > 1e-5, "a changed frame changes the answer"


def test_a_decoder_that_starts_again_changes_nothing(model, tokenizer, prompt):
    changes = [change(2), change(5)]
    found = []
    for items in ([plan(6, 6), block(0, 6)], [plan(6, 6), block(0, 3), plan(6, 6), block(0, 6)]):
        with FakeStream(*items) as stream:
            variants = watch_variants(Session(model, tokenizer, 16), prompt, stream, changes)
        found.append([state.numpy().tobytes() for variant in variants for state in states(variant)])
    assert found[0] == found[1]


def test_a_damaged_video_is_an_error(model, tokenizer, prompt):
    with FakeStream(plan(6, 6), block(0, 3), "error") as stream, pytest.raises(UserError, match="damaged"):
        watch_variants(Session(model, tokenizer, 16), prompt, stream, [change(1)])

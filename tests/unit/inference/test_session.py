"""A session in chunks is the plain model over the whole sequence. S tokens, N frames, K tokens of a frame."""

import numpy as np
import pytest
import torch

from ma2mba.data.batch import Sample, collate
from ma2mba.inference.interleaved import with_frames
from ma2mba.inference.session import Session, chunk_length

K = 4
FRAMES = 9


@pytest.fixture
def prompt():
    generator = torch.Generator().manual_seed(1)
    token_ids = torch.randint(6, 40, (11,), generator=generator).tolist()
    colours_NC11 = torch.randint(0, 256, (FRAMES, 3, 1, 1), generator=generator, dtype=torch.uint8)
    frames_NCHW = colours_NC11.expand(-1, -1, 56, 56).contiguous()
    return token_ids, [0, 3, 3, 3, 3, 3, 3, 7, 11], frames_NCHW


@torch.no_grad()
def plain_logits(model, ids_S, visual_S, frames_NCHW):
    x_BTD = model.embed(ids_S[None], visual_S[None], frames_NCHW)
    x_BTD, _ = model.run(x_BTD, model.initial_states(x_BTD))
    return model.logits(x_BTD)[0]


@pytest.mark.parametrize("chunk_tokens", [1, 3, 4, 5, 13, 1000])
def test_chunks_give_what_the_whole_sequence_gives(model, tokenizer, prompt, chunk_tokens):
    token_ids, positions, frames_NCHW = prompt
    ids_S, visual_S = with_frames(token_ids, positions, K)
    session = Session(model, tokenizer, chunk_tokens)
    session.feed(ids_S, visual_S, frames_NCHW)
    expected_V = plain_logits(model, ids_S, visual_S, frames_NCHW)[-1, : tokenizer.get_vocab_size()]
    assert len(ids_S) == 11 + FRAMES * K
    # Logits are of the order of 0.3; the worst difference measured was 3e-7.
    torch.testing.assert_close(session.logits(), expected_V, rtol=0, atol=1.5e-6)


def test_every_frame_counts_in_its_place(model, tokenizer, prompt):
    token_ids, positions, frames_NCHW = prompt
    ids_S, visual_S = with_frames(token_ids, positions, K)
    logits = []
    for order in ([0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 4, 3, 5, 6, 7, 8]):
        session = Session(model, tokenizer, chunk_tokens=5)
        session.feed(ids_S, visual_S, frames_NCHW[order])
        logits.append(session.logits())
    assert (logits[0] - logits[1]).abs().max() > 1.5e-5, "ten times what chunking may change"


def test_no_call_sees_more_than_a_chunk(model, tokenizer, prompt, monkeypatch):
    token_ids, positions, frames_NCHW = prompt
    seen = []
    real = model.embed

    def embed(ids_BT, visual_BT, frames_NCHW):
        seen.append((ids_BT.shape[1], len(frames_NCHW)))
        return real(ids_BT, visual_BT, frames_NCHW)

    monkeypatch.setattr(model, "embed", embed)
    Session(model, tokenizer, chunk_tokens=8).feed(*with_frames(token_ids, positions, K), frames_NCHW)
    assert sum(tokens for tokens, _ in seen) == 11 + FRAMES * K
    assert sum(frames for _, frames in seen) == FRAMES, "a frame was encoded twice"
    assert max(tokens for tokens, _ in seen) <= 8
    assert max(frames for _, frames in seen) <= 2


@pytest.mark.parametrize("chunk_tokens", [3, 8, 1000])
def test_a_picture_that_several_frames_show_is_encoded_once_a_chunk(
    model, tokenizer, prompt, chunk_tokens, monkeypatch
):
    token_ids, positions, frames_NCHW = prompt
    shown_N = np.array([0, 0, 1, 1, 1, 0, 2, 2, 1])
    whole, sparse = Session(model, tokenizer, chunk_tokens), Session(model, tokenizer, chunk_tokens)
    whole.feed(*with_frames(token_ids, positions, K), frames_NCHW[shown_N])
    seen = []
    real = model.vision.forward
    monkeypatch.setattr(model.vision, "forward", lambda frames: seen.append(len(frames)) or real(frames))
    sparse.feed(*with_frames(token_ids, positions, K, shown_N), frames_NCHW[:3])
    # As above: a batch of other size may change the last bits.
    torch.testing.assert_close(sparse.logits(), whole.logits(), rtol=0, atol=1.5e-6)
    assert max(seen) <= 3
    assert sum(seen) == {3: 18, 8: 8, 1000: 3}[chunk_tokens]


def test_a_session_keeps_no_graph_and_no_growing_state(model, tokenizer):
    session = Session(model, tokenizer)
    sizes = []
    for _ in range(3):
        session.feed_text([7, 8, 9] * 20)
        assert session.states is not None
        tensors = [t for pair in session.states for t in pair]
        assert not any(t.requires_grad for t in tensors)
        sizes.append(sum(t.untyped_storage().nbytes() for t in tensors))
    assert sizes[0] == sizes[1] == sizes[2]


def test_forks_do_not_disturb_each_other(model, tokenizer):
    trunk = Session(model, tokenizer)
    trunk.feed_text([7, 8, 9])
    before = trunk.logits()
    left, right = trunk.fork(), trunk.fork()
    left.feed_text([10, 11])
    right.feed_text([10, 11])
    assert torch.equal(left.logits(), right.logits())
    assert torch.equal(trunk.logits(), before)
    assert not torch.equal(left.logits(), before)


def test_logits_before_the_first_token_are_refused(model, tokenizer):
    with pytest.raises(ValueError, match="has not read any token"):
        Session(model, tokenizer).logits()


def test_places_are_those_of_a_training_batch(prompt):
    token_ids, positions, frames_NCHW = prompt
    sample = Sample("a", np.array(token_ids), np.zeros(len(token_ids), bool), np.array(positions), frames_NCHW.numpy())
    batch = collate([sample], K)
    ids_S, visual_S = with_frames(token_ids, positions, K)
    assert torch.equal(batch.ids_BS[0], ids_S)
    assert torch.equal(batch.visual_BS[0], visual_S)


@pytest.mark.parametrize(
    ("device", "tokens_per_frame", "tokens"),
    [("cpu", 144, 4096), ("cuda", 144, 16384), ("cpu", 4, 512), ("cuda", 4, 512), ("meta", 144, 4096)],
)
def test_the_length_of_a_chunk_depends_on_the_device_and_on_the_model(device, tokens_per_frame, tokens):
    assert chunk_length(device, tokens_per_frame) == tokens

"""One token a call is the same as a feed. B sequences."""

import copy

import pytest
import torch

from ma2mba.inference.decoder import Decoder, Slots
from ma2mba.inference.session import Session
from ma2mba.model.layer import RecurrentLayer
from ma2mba.model.mamba2 import Mamba2Layer

PROMPTS = ([9, 12, 15, 7], [8], [21, 22, 23, 24, 25, 26, 27])
TOKENS = torch.tensor([[11, 30, 12], [13, 8, 39], [6, 6, 6], [17, 28, 9], [33, 10, 14]])


def sessions(model, tokenizer, count):
    opened = []
    for prompt in PROMPTS[:count]:
        opened.append(Session(model, tokenizer))
        opened[-1].feed_text(prompt)
    return opened


@pytest.mark.parametrize(("count", "tied"), [(1, True), (3, True), (3, False)])
def test_steps_give_what_feeds_give(model, tokenizer, count, tied):
    model = copy.deepcopy(model).double()
    if not tied:
        model.language_model.lm_head = copy.deepcopy(model.language_model.lm_head)
        torch.nn.init.normal_(model.language_model.lm_head.weight, std=0.02)
    fed = sessions(model, tokenizer, count)
    decoder = Decoder(model, [session.states for session in fed])
    for ids_B in TOKENS[:, :count]:
        logits_BV = decoder.step(ids_B)
        for row, (session, token) in enumerate(zip(fed, ids_B.tolist(), strict=True)):
            session.feed_text([token])
            expected_V = session.logits()
            # Logits are of the order of 0.3; the worst difference measured was 2e-7: `Session.logits` is fp32.
            torch.testing.assert_close(logits_BV[row, : len(expected_V)].float(), expected_V, rtol=0, atol=1e-6)
    for row, session in enumerate(fed):
        for found, right in zip(decoder.states(row), session.states, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-14)
            assert [t.stride() for t in found] == [t.stride() for t in right]


@pytest.mark.parametrize("plain", [False, True])
def test_a_step_of_the_first_rows_leaves_the_others(model, tokenizer, monkeypatch, plain):
    """Also of a layer without a step of its own."""
    if plain:
        monkeypatch.setattr(Mamba2Layer, "open_step", RecurrentLayer.open_step)
    fed = sessions(model, tokenizer, 3)
    slots = Slots(model, 3)
    for row, session in enumerate(fed):
        for layer, state in zip(slots.layers, session.states, strict=True):
            layer.load(row, state)
    for count, ids_B in zip((3, 1, 2, 3), TOKENS, strict=False):
        logits_BV = slots.step(ids_B[:count])
        assert len(logits_BV) == count
        for row, token in enumerate(ids_B[:count].tolist()):
            fed[row].feed_text([token])
            right_V = fed[row].logits()
            torch.testing.assert_close(logits_BV[row, : len(right_V)], right_V, rtol=0, atol=1e-6)
    for row, session in enumerate(fed):
        for layer, right in zip(slots.layers, session.states, strict=True):
            torch.testing.assert_close(layer.state(row), right, rtol=1e-4, atol=1e-6)


def test_states_are_copies(model, tokenizer):
    (session,) = sessions(model, tokenizer, 1)
    before = [[t.clone() for t in state] for state in session.states]
    decoder = Decoder(model, [session.states])
    decoder.step(torch.tensor([5]))
    kept = decoder.states(0)
    copies = [[t.clone() for t in state] for state in kept]
    decoder.step(torch.tensor([6]))
    for found, right in ((session.states, before), (kept, copies)):
        assert all(torch.equal(a, b) for x, y in zip(found, right, strict=True) for a, b in zip(x, y, strict=True))


def test_changed_weights_count_in_the_next_decoder(model, tokenizer):
    """Slots that a decoder leaves behind hold copies of small weights."""
    model = copy.deepcopy(model)
    (session,) = sessions(model, tokenizer, 1)
    token = torch.tensor([5])
    before = Decoder(model, [session.states]).step(token).clone()
    with torch.no_grad():
        model.layers[0].mixer.A_log.add_(3)
    after = Decoder(model, [session.states]).step(token)
    other = session.fork()
    other.feed_text([5])
    assert (after - before).abs().max() > 1e-4
    torch.testing.assert_close(after[0, : len(other.logits())], other.logits(), rtol=0, atol=1e-6)


def test_a_model_made_in_inference_mode(model, tokenizer):
    with torch.inference_mode():
        frozen = copy.deepcopy(model)
        (session,) = sessions(frozen, tokenizer, 1)
        found = [Decoder(frozen, [session.states]).step(torch.tensor([5])).clone() for _ in range(2)]
    assert torch.equal(*found)

"""Which tokens are chosen, when an answer ends and why, how text appears, and what a session has read then."""

import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ma2mba.errors import UserError
from ma2mba.inference.decoder import Decoder
from ma2mba.inference.generate import Batch
from ma2mba.inference.sampling import Sampling
from ma2mba.inference.session import Session
from ma2mba.inference.text_stream import StopStrings, TextStream
from ma2mba.model.conversation import END, Turn, encode_conversation, encode_prompt
from tests.unit.inference.scripted import answer_of, scripted

PROMPT = [9, 12, 15, 7]


def written(monkeypatch, tokenizer, script, **options):
    answer, _ = answer_of(monkeypatch, tokenizer, script, **options)
    return answer.tokens, answer.reason


def test_ends_at_the_end_token(monkeypatch, tokenizer):
    script = [7, 8, tokenizer.token_to_id(END), 9]
    assert written(monkeypatch, tokenizer, script) == ([7, 8], "end")


def test_ends_after_max_tokens(monkeypatch, tokenizer):
    assert written(monkeypatch, tokenizer, list(range(10, 60)), max_tokens=3) == ([10, 11, 12], "length")


def test_an_answer_may_be_empty(monkeypatch, tokenizer):
    answer, pieces = answer_of(monkeypatch, tokenizer, [tokenizer.token_to_id(END)])
    assert (answer.tokens, answer.text, answer.reason, pieces) == ([], "", "end", [])
    assert answer.tokens_per_second is None


def test_with_the_papers_rule_it_ends_when_five_tokens_in_a_row_stood_before(monkeypatch, tokenizer):
    loop = [20, 21, 22]
    rule = {"repetition_stop": True}
    expected = [10, 11, *loop, *loop, 20, 21]
    assert written(monkeypatch, tokenizer, [10, 11, *loop * 10], **rule) == (expected, "repetition")
    assert written(monkeypatch, tokenizer, [30] * 20, **rule) == ([30] * 6, "repetition")
    assert written(monkeypatch, tokenizer, [30] * 20, max_tokens=15) == ([30] * 15, "length")


def test_words_that_come_again_in_another_order_do_not_end_it(monkeypatch, tokenizer):
    script = [10, 11, 12, 13, 14, 15, 10, 11, 12, 13, 16, 14, 11, 10, 15, 13, tokenizer.token_to_id(END)]
    assert written(monkeypatch, tokenizer, script, repetition_stop=True) == (script[:-1], "end")


def test_output_that_is_not_a_number_is_refused(monkeypatch, tokenizer):
    with pytest.raises(UserError, match="not a number"):
        written(monkeypatch, tokenizer, [7, None])
    with pytest.raises(UserError, match="not a number"):
        written(monkeypatch, tokenizer, [7, None], temperature=1.0, top_p=0.9)


def asked(model, tokenizer, prompt=PROMPT):
    session = Session(model, tokenizer)
    session.feed_text(prompt)
    return session


@torch.no_grad()
def plain_logits(model, tokenizer, ids):
    """Return the logits of the next token after `ids`, in one call."""
    ids_BT = torch.tensor([ids])
    x_BTD = model.embed(ids_BT, torch.full_like(ids_BT, -1), torch.zeros(0, 3, 56, 56, dtype=torch.uint8))
    x_BTD, _ = model.run(x_BTD, model.initial_states(x_BTD))
    return model.logits(x_BTD)[0, -1, : tokenizer.get_vocab_size()]


def test_greedy_is_the_argmax_of_the_whole_sequence_each_time(model, tokenizer):
    (answer,) = Batch([asked(model, tokenizer)], Sampling(max_tokens=6, logprobs=True)).write()
    assert len(answer.tokens) >= 2, "the random model ended at once: choose another prompt"
    for i, token in enumerate(answer.tokens):
        expected_V = plain_logits(model, tokenizer, PROMPT + answer.tokens[:i])
        assert token == int(expected_V.argmax())
        assert answer.logprobs[i] == pytest.approx(float(expected_V.log_softmax(-1)[token]), abs=1e-5)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 2.0, "top_p": 0.9, "top_k": 30}])
def test_answers_of_a_batch_are_those_of_single_sessions(model, tokenizer, options):
    """Equal here. In general a token may differ if two logits, or a draw and a boundary, lie within rounding."""
    prompts = [PROMPT, [8, 9], [20, 11, 30, 6, 7, 8], PROMPT, [17]]
    sampling = Sampling(**options, max_tokens=24, seed=7)
    together = Batch([asked(model, tokenizer, prompt) for prompt in prompts], sampling).write()
    alone = [Batch([asked(model, tokenizer, prompt)], sampling).write()[0] for prompt in prompts]
    assert [(a.text, a.tokens, a.reason) for a in together] == [(a.text, a.tokens, a.reason) for a in alone]
    assert together[0].tokens == together[3].tokens, "the same question and seed"
    assert len({tuple(a.tokens) for a in together}) == 4


def test_another_seed_gives_another_text(model, tokenizer):
    tokens = [
        tuple(Batch([asked(model, tokenizer)], Sampling(temperature=1.0, max_tokens=8, seed=seed)).write()[0].tokens)
        for seed in (1, 1, 2)
    ]
    assert tokens[0] == tokens[1] != tokens[2]


def test_rows_that_have_ended_leave_the_batch(monkeypatch, model, tokenizer):
    sizes = []
    real = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, ids_B: sizes.append(len(ids_B)) or real(self, ids_B))
    end = tokenizer.token_to_id(END)
    scripts = [[7] * n + [end] for n in (2, 5, 3, 9)]
    with scripted(monkeypatch, scripts):
        answers = Batch([asked(model, tokenizer) for _ in scripts], Sampling()).write()
    assert [answer.tokens for answer in answers] == [script[:-1] for script in scripts]
    assert sizes == [4] * 4 + [2] * 2 + [1] * 4


@pytest.mark.parametrize("reason", ["end", "length", "repetition", "stop"])
def test_a_session_goes_on_after_the_answer_as_training_has_it(monkeypatch, model, tokenizer, reason):
    """The state has read the whole conversation as it was shown, and the next turn follows it."""
    end = tokenizer.token_to_id(END)
    words = tokenizer.encode("a red star over a blue ring", add_special_tokens=False).ids
    script = {"end": [*words, end], "repetition": words[:3] * 9}.get(reason, words * 2)
    options = {"length": {"max_tokens": 5}, "repetition": {"repetition_stop": True}, "stop": {"stop": " over a"}}
    prompt = encode_prompt(tokenizer, "Which symbol appeared?", 0).token_ids
    session = asked(model, tokenizer, prompt)
    with scripted(monkeypatch, [script]):
        (answer,) = Batch([session], Sampling(**options.get(reason, {}))).write(keep=True)
    assert answer.reason == reason
    if reason == "stop":
        assert answer.text == "a red star"
    turns = [Turn("user", "Which symbol appeared?"), Turn("assistant", answer.text)]
    turns += [Turn("user", "What symbol?"), Turn("assistant", "blue")]
    ids = encode_conversation(tokenizer, turns, 0).token_ids
    follow = len(prompt) + len(tokenizer.encode(answer.text, add_special_tokens=False).ids) + 1
    session.feed_text(ids[follow:])
    torch.testing.assert_close(session.logits(), plain_logits(model, tokenizer, ids), rtol=0, atol=1.5e-6)


def test_sessions_stay_as_they_are_without_keep(model, tokenizer):
    session = asked(model, tokenizer)
    before = session.logits()
    Batch([session], Sampling(max_tokens=4)).write()
    assert torch.equal(session.logits(), before)


@pytest.fixture(scope="module")
def bytes_tokenizer():
    """One token a byte, as the rare characters of GPT-NeoX are."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate([END, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer


TEXTS = ["plain", "naïve café", "видео", "動画を見る", "a 🎬🎥 film", "👩‍🚀!"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_appears_whole_characters_at_a_time(bytes_tokenizer, text):
    stream = TextStream(bytes_tokenizer)
    pieces = [stream.push(token) for token in bytes_tokenizer.encode(text).ids]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    assert stream.finish() == ""


def test_bytes_that_never_become_a_character_are_shown_at_the_end(bytes_tokenizer):
    stream = TextStream(bytes_tokenizer)
    ids = bytes_tokenizer.encode("a🎬").ids[:-1]
    assert "".join(stream.push(token) for token in ids) == "a"
    assert stream.finish() == bytes_tokenizer.decode(ids)[1:]


def test_words_are_joined_as_the_tokenizer_joins_them(tokenizer):
    ids = tokenizer.encode("a red circle moves over a plain blue background.", add_special_tokens=False).ids
    stream = TextStream(tokenizer)
    text = "".join(stream.push(token) for token in ids) + stream.finish()
    assert text == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("ab abc abcd", ["abcd"], "ab abc "),
        ("aaaaab", ["aab"], "aaa"),
        ("🎬 film 🎥 film", [" 🎥"], "🎬 film"),
        ("nothing of it", ["itself"], "nothing of it"),
        ("STOP", ["STOP"], ""),
        ("line\n\nmore", ["\n\n"], "line"),
    ],
)
def test_nothing_of_a_stop_string_is_ever_shown(monkeypatch, bytes_tokenizer, text, stops, shown):
    answer, pieces = answer_of(monkeypatch, bytes_tokenizer, [*bytes_tokenizer.encode(text).ids, 0], stop=stops)
    assert "".join(pieces) == answer.text == shown
    assert answer.reason == ("end" if shown == text else "stop")
    assert all("\ufffd" not in piece for piece in pieces)


def test_only_text_that_may_become_a_stop_string_is_held_back():
    generator = random.Random(0)
    for _ in range(2000):
        text = "".join(generator.choices("ab", k=generator.randint(0, 12)))
        stops = ["".join(generator.choices("ab", k=generator.randint(1, 4))) for _ in range(generator.randint(0, 2))]
        stream, shown = StopStrings(stops), ""
        for at, letter in enumerate(text):
            shown += stream.push(letter)
            read = text[: at + 1]
            if stream.found:
                break
            held = read[len(shown) :]
            assert read.startswith(shown)
            assert not held or any(stop.startswith(held) for stop in stops)
        if not stream.found:
            shown += stream.push("", final=True)
        first = next((n for n in range(len(text) + 1) if any(stop in text[:n] for stop in stops)), None)
        assert stream.found == (first is not None)
        cuts = [text[:first].find(stop) for stop in stops if stop in text[:first]]
        assert shown == (text[: min(cuts)] if stream.found else text)

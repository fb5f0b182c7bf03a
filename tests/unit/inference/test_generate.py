"""Which tokens are chosen, when generation ends, and how text appears."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ma2mba.inference.generate import TextStream, generate, repeats
from ma2mba.inference.session import Session
from ma2mba.model.conversation import END


class Scripted:
    """Stands for a session whose likeliest next token is the script's."""

    def __init__(self, tokenizer: Tokenizer, script: list[int]):
        self.tokenizer, self.script, self.read = tokenizer, script, []

    def logits(self) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor(self.script[len(self.read)]), 100).float()

    def feed_text(self, ids: list[int]) -> None:
        self.read += ids


def written(tokenizer, script, max_tokens=50):
    return list(generate(Scripted(tokenizer, script), max_tokens))


def test_ends_at_the_end_token(tokenizer):
    assert written(tokenizer, [7, 8, tokenizer.token_to_id(END), 9]) == [7, 8]


def test_ends_after_max_tokens(tokenizer):
    assert written(tokenizer, list(range(10, 60)), max_tokens=3) == [10, 11, 12]


def test_ends_when_five_tokens_in_a_row_stood_before(tokenizer):
    loop = [20, 21, 22]
    assert written(tokenizer, [10, 11, *loop * 10]) == [10, 11, *loop, *loop, 20, 21]
    assert written(tokenizer, [30] * 20) == [30] * 6


def test_words_that_come_again_in_another_order_do_not_end_it(tokenizer):
    script = [10, 11, 12, 13, 14, 15, 10, 11, 12, 13, 16, 14, 11, 10, 15, 13, tokenizer.token_to_id(END)]
    assert written(tokenizer, script) == script[:-1]
    assert not repeats(script)


def test_greedy_is_the_argmax_of_the_whole_sequence_each_time(model, tokenizer):
    prompt = [9, 12, 15, 7]
    session = Session(model, tokenizer)
    session.feed_text(prompt)
    chosen = list(generate(session, 6))
    assert len(chosen) >= 2, "the random model ended at once: choose another prompt"
    for i, token in enumerate(chosen):
        ids_BT = torch.tensor([prompt + chosen[:i]])
        with torch.no_grad():
            x_BTD = model.embed(ids_BT, torch.full_like(ids_BT, -1), session.no_frames())
            x_BTD, _ = model.run(x_BTD, model.initial_states(x_BTD))
            expected = model.logits(x_BTD)[0, -1, : tokenizer.get_vocab_size()].argmax()
        assert token == int(expected)


@pytest.fixture(scope="module")
def bytes_tokenizer():
    """One token a byte, as the rare characters of GPT-NeoX are."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.mark.parametrize("text", ["plain", "naïve café", "видео", "動画を見る", "a 🎬🎥 film", "👩‍🚀!"])
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

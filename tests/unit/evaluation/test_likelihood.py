"""The likelihood of options agrees with a plain forward of the whole sequence."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from ma2mba.evaluation.likelihood import OptionScore, likeliest, score_options
from ma2mba.inference.chat import VideoChat
from ma2mba.model.conversation import ASSISTANT, SYSTEM, USER, Encoded
from ma2mba.model.plain_text import END
from ma2mba.video.blocks import read_frames

OPTIONS = ["a red star", "blue", "a green ring on the left side", "red"]
QUESTION = "Which symbol is there?"


@pytest.fixture
def wide(model):
    """Return the model in fp64."""
    return copy.deepcopy(model).double()


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def plain_score(model, tokenizer, picture, option: str) -> float:
    """Compute the log-likelihood of an option in one forward over system turn, frame, question and option."""
    encoded = Encoded()
    encoded.add_template(tokenizer, SYSTEM + USER)
    before = len(encoded.token_ids)
    encoded.add_text(tokenizer, QUESTION)
    encoded.add_template(tokenizer, END + ASSISTANT)
    start = len(encoded.token_ids)
    encoded.add_text(tokenizer, option)
    frames = torch.from_numpy(read_frames(picture, 56).frames_NHWC).permute(0, 3, 1, 2)
    per_frame = model.config.tokens_per_frame
    ids = [*encoded.token_ids[:before], *[0] * per_frame, *encoded.token_ids[before:]]
    visual = [*[-1] * before, *range(per_frame), *[-1] * (len(encoded.token_ids) - before)]
    x_BTD = model.embed(torch.tensor([ids]), torch.tensor([visual]), frames)
    x_BTD, _ = model.run(x_BTD, model.initial_states(x_BTD))
    logs_TV = model.logits(x_BTD)[0, :, : tokenizer.get_vocab_size()].log_softmax(-1)
    return sum(float(logs_TV[start + per_frame + i - 1, token]) for i, token in enumerate(encoded.token_ids[start:]))


@torch.no_grad()
def test_scores_equal_a_plain_forward_in_fp64(wide, tokenizer, picture):
    chat = VideoChat(wide, tokenizer)
    chat.watch(picture)
    scores = score_options(chat, QUESTION, OPTIONS)
    for option, score in zip(OPTIONS, scores, strict=True):
        expected = plain_score(wide, tokenizer, picture, option)
        assert score.total == pytest.approx(expected, abs=1e-9)
        assert score.per_letter == pytest.approx(expected / len(option), abs=1e-9)
    assert len({score.tokens for score in scores}) > 1, "the options differ in length"


def test_options_do_not_change_each_other_nor_the_chat(model, tokenizer, picture):
    chat = VideoChat(model, tokenizer)
    chat.watch(picture)
    before = chat.ask(QUESTION, max_tokens=8).text
    together = score_options(chat, QUESTION, OPTIONS)
    alone = [score_options(chat, QUESTION, [option])[0] for option in OPTIONS]
    for one, other in zip(together, alone, strict=True):
        assert one.total == pytest.approx(other.total, abs=1e-4)
    assert chat.ask(QUESTION, max_tokens=8).text == before


def test_the_likeliest_option_has_the_best_mean_per_letter():
    scores = [OptionScore(-10.0, -1.0, 5), OptionScore(-4.0, -2.0, 1), OptionScore(-9.0, -0.9, 4)]
    assert likeliest(scores) == 2
    assert likeliest([scores[0], scores[0]]) == 0


def test_what_the_model_answers_is_likely(model, tokenizer, picture):
    chat = VideoChat(model, tokenizer)
    chat.watch(picture)
    said = chat.ask(QUESTION, max_tokens=3).text.strip()
    scores = score_options(chat, QUESTION, ["zzz qqq", said])
    assert scores[1].total / scores[1].tokens > scores[0].total / scores[0].tokens


def test_a_blank_option_is_the_answer_that_ends_at_once(model, tokenizer, picture):
    chat = VideoChat(model, tokenizer)
    chat.watch(picture)
    logs_V = chat.asked(QUESTION).logits().log_softmax(-1)
    (score,) = score_options(chat, QUESTION, [""])
    assert score.total == pytest.approx(float(logs_V[tokenizer.token_to_id(END)]), abs=1e-4)
    assert score.per_letter == score.total

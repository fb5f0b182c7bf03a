"""Answers on a GPU: a batch against single sequences, draws by seed, and a state in a file."""

import pytest
import torch

from data_prep.toy.words import build_tokenizer
from ma2mba.inference.chat import VideoChat
from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.config import ModelConfig
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.video_ma2mba import VideoMa2mba
from tests.unit.inference.test_chat import save_picture

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
QUESTIONS = ["Which symbol appeared?", "How many scenes?", "What?", "Which symbol appeared?"]


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    language = Mamba2Config(d_model=256, n_layer=4, d_state=64, headdim=64, vocab_size=tokenizer.get_vocab_size())
    vision = ClipConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    model = VideoMa2mba(ModelConfig(language_model=language, vision=vision)).cuda().to(torch.bfloat16).eval()
    chat = VideoChat(model, tokenizer)
    chat.watch(save_picture(tmp_path_factory.mktemp("media") / "picture.png"))
    return chat


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "seed": 3}])
def test_a_batch_writes_what_single_sequences_write(chat, options):
    """Up to where two logits, or a draw and a boundary, lie within rounding: bf16 logits may tie."""
    together = chat.ask_all(QUESTIONS, max_tokens=8, logprobs=True, **options)
    alone = [chat.ask(question, max_tokens=8, logprobs=True, **options) for question in QUESTIONS]
    again = [chat.ask(question, max_tokens=8, logprobs=True, **options) for question in QUESTIONS]
    assert [a.tokens for a in alone] == [a.tokens for a in again]
    assert together[0].tokens == together[3].tokens
    for one, other in zip(together, alone, strict=True):
        assert one.logprobs[0] == pytest.approx(other.logprobs[0], abs=0.05)
        assert one.reason in ("end", "length")


def test_a_loaded_state_has_the_same_bits(chat, tmp_path):
    chat.save(tmp_path / "a.state")
    loaded = chat.load(tmp_path / "a.state")
    for one, other in zip(loaded._now.session.states, chat._now.session.states, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    talks = [talk.ask(QUESTIONS[0], max_tokens=8, logprobs=True, remember=True) for talk in (chat.fork(), loaded)]
    assert talks[0].logprobs == talks[1].logprobs

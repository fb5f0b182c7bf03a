"""A random model whose answers are letters of options, by chance.

A random model gives nearly the same answer to every question, and no score would tell questions apart. So `letters`
lets the bits of the logits choose the letter: two answers are the same only if everything before them was.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import xxhash
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from ma2mba.inference import generate
from ma2mba.inference.sampling import Draws, Sampling
from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.config import ModelConfig
from ma2mba.model.conversation import ASSISTANT, END, USER
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.pretrained import save_model
from ma2mba.model.video_ma2mba import VideoMa2mba

CONTROL = [END, "<|padding|>", "<|system|>", USER.strip(), ASSISTANT.strip()]
ANSWERS = ("A", "B", "C", "D", "(B)", "C.", "?")


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer whose tokens are bytes and the control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*CONTROL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(CONTROL)
    return tokenizer


def write_model(folder: Path) -> Path:
    """Write the folder of a model that turns a frame of 28 x 28 pixels into 4 visual tokens."""
    tokenizer = byte_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    language = Mamba2Config(
        d_model=32, n_layer=2, d_state=16, headdim=16, ssd_block=16, vocab_size=tokenizer.get_vocab_size()
    )
    vision = ClipConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7
    )
    model = VideoMa2mba(ModelConfig(language_model=language, vision=vision)).eval()
    save_model(model, folder / "tokenizer.json", folder / "model")
    return folder / "model"


@contextmanager
def letters(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the logits before an answer choose it from ANSWERS."""
    tokenizer = byte_tokenizer()
    scripts = [[*tokenizer.encode(text).ids, tokenizer.token_to_id(END)] for text in ANSWERS]
    begun: dict[int, tuple[Draws, list[int]]] = {}

    def choose(logits_BV: Tensor, sampling: Sampling, draws: Sequence[Draws]) -> Tensor:
        for own, logits_V in zip(draws, logits_BV, strict=True):
            if id(own) not in begun:
                number = xxhash.xxh3_64_intdigest(logits_V.numpy().tobytes()) % len(scripts)
                begun[id(own)] = own, list(scripts[number])
        return torch.tensor([(begun[id(own)][1] or [0]).pop(0) for own in draws])

    with monkeypatch.context() as patched:
        patched.setattr(generate, "choose", choose)
        yield

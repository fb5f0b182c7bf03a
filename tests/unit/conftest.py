"""A random model that runs in milliseconds, and the tokenizer of the toy corpus."""

from pathlib import Path

import pytest
import torch

from data_prep.toy.words import build_tokenizer
from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.config import ModelConfig
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.pretrained import save_model
from ma2mba.model.video_ma2mba import VideoMa2mba


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer) -> VideoMa2mba:
    """Return a model that turns a frame of 56 x 56 pixels into 4 visual tokens."""
    torch.manual_seed(0)
    language = Mamba2Config(
        d_model=32, n_layer=3, d_state=8, headdim=8, ssd_block=16, vocab_size=tokenizer.get_vocab_size()
    )
    vision = ClipConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    model = VideoMa2mba(ModelConfig(language_model=language, vision=vision)).eval()
    with torch.no_grad():  # with its initial weights, a model with a tied embedding repeats the last token
        for layer in model.language_model.backbone.layers:
            layer.mixer.out_proj.weight.mul_(30)
    return model


@pytest.fixture(scope="session")
def model_folder(model, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save(str(folder / "tokenizer.json"))
    save_model(model, folder / "tokenizer.json", folder / "model")
    return folder / "model"

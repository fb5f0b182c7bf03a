"""Model folders, and published weights."""

import json

import pytest
import torch
from safetensors.torch import save_file

from ma2mba.errors import UserError
from ma2mba.model.clip import ClipEncoder
from ma2mba.model.config import ModelConfig
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.pretrained import (
    load_model,
    save_model,
)
from ma2mba.model.published import init_language_model, init_vision
from ma2mba.model.video_ma2mba import VideoMa2mba
from tests.unit.model.test_model import BACKBONE, VISION


@pytest.fixture
def tokenizer(tmp_path):
    from tokenizers import Tokenizer, models

    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a")).save(str(path))
    return path


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VideoMa2mba(ModelConfig(language_model=BACKBONE, vision=VISION))


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    save_model(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def state_spaces_checkpoint() -> dict[str, torch.Tensor]:
    """Return a state dict with the names and shapes of mamba-ssm's MambaLMHeadModel for the sizes of BACKBONE."""
    d, inner, conv, heads, vocab = 24, 48, 48 + 2 * 8, 6, 32
    tensors = {"backbone.embedding.weight": (vocab, d), "backbone.norm_f.weight": (d,), "lm_head.weight": (vocab, d)}
    for i in range(2):
        tensors |= {
            f"backbone.layers.{i}.norm.weight": (d,),
            f"backbone.layers.{i}.mixer.in_proj.weight": (inner + conv + heads, d),
            f"backbone.layers.{i}.mixer.conv1d.weight": (conv, 1, 4),
            f"backbone.layers.{i}.mixer.conv1d.bias": (conv,),
            f"backbone.layers.{i}.mixer.dt_bias": (heads,),
            f"backbone.layers.{i}.mixer.A_log": (heads,),
            f"backbone.layers.{i}.mixer.D": (heads,),
            f"backbone.layers.{i}.mixer.norm.weight": (inner,),
            f"backbone.layers.{i}.mixer.out_proj.weight": (d, inner),
        }
    return {name: torch.randn(shape) for name, shape in tensors.items()}


def test_round_trip(model, folder):
    loaded, tokenizer = load_model(folder, dtype="fp32")
    assert loaded.config == model.config
    assert not loaded.training
    assert tokenizer.token_to_id("a") == 1
    pairs = zip(loaded.state_dict().items(), model.state_dict().items(), strict=True)
    assert all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)
    assert loaded.language_model.lm_head.weight is loaded.language_model.backbone.embedding.weight


def test_existing_folder_is_not_overwritten(model, tokenizer, folder):
    with pytest.raises(UserError, match="exists already"):
        save_model(model, tokenizer, folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_flipped_byte_is_refused_by_name(folder, name):
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{name}: is damaged"):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        load_model(folder)


def test_state_spaces_weights_load_by_name(model, tmp_path):
    tensors = state_spaces_checkpoint()
    tensors["lm_head.weight"] = tensors["backbone.embedding.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    init_language_model(model, str(tmp_path))
    state = model.language_model.state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name], tensors[name]) for name in tensors)


def test_another_architecture_is_refused_and_tensors_are_named(model, tmp_path):
    tensors = state_spaces_checkpoint()
    tensors["backbone.layers.0.mixer.D"] = torch.zeros(7)
    del tensors["backbone.norm_f.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"2 tensors differ.*mixer\.D is \(7,\), not \(6,\).*norm_f\.weight is absent"):
        init_language_model(model, str(tmp_path))


def test_a_damaged_pickle_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: cannot be converted"):
        init_language_model(model, str(tmp_path))


def test_a_missing_folder_of_weights_says_how_to_download_it(tmp_path):
    with pytest.raises(UserError, match=r"mamba2/config\.json: does not exist.*docs/training\.md"):
        Mamba2Config.of_published(str(tmp_path / "mamba2"))


def test_the_config_of_a_published_mamba2(tmp_path):
    """The config.json that state-spaces/mamba2-2.7b publishes."""
    values = {"d_model": 2560, "d_intermediate": 0, "n_layer": 64, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"}}
    values |= {"attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True, "residual_in_fp32": True}
    values |= {"fused_add_norm": True, "pad_vocab_size_multiple": 16, "tie_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = Mamba2Config.of_published(str(tmp_path))
    assert (config.d_model, config.n_layer, config.padded_vocab_size, config.heads) == (2560, 64, 50288, 80)
    values["ssm_cfg"] = {"layer": "Mamba1"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="Mamba-2"):
        Mamba2Config.of_published(str(tmp_path))


def test_a_real_vision_encoder_loads(shared):
    source = shared / "vision" / "dinov2-small-as-clip-vision-336"
    encoder = ClipEncoder.load(str(source))
    assert encoder.config.tokens_per_frame == 144
    assert encoder.config.image_mean == (0.485, 0.456, 0.406)
    assert len(encoder.clip.encoder.layers) == 11
    tokens = encoder(torch.zeros(1, 3, 336, 336, dtype=torch.uint8))
    assert tokens.shape == (1, 144, 384)
    model = VideoMa2mba(ModelConfig(language_model=BACKBONE, vision=encoder.config))
    init_vision(model, str(source))
    assert all(torch.equal(a, b) for a, b in zip(model.vision.parameters(), encoder.parameters(), strict=True))


def test_a_vision_encoder_of_another_shape_is_refused(model, shared):
    with pytest.raises(UserError, match="hidden_size"):
        init_vision(model, str(shared / "vision" / "dinov2-small-as-clip-vision-336"))


def test_a_folder_without_an_encoder_is_refused(model, tmp_path):
    with pytest.raises(UserError, match=r"model\.safetensors"):
        ClipEncoder.load(str(tmp_path))

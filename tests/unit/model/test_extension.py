"""A new backbone layer and a new vision encoder need one file: no training, data, planner or inference code."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer

from examples.extending.gated_model import GatedConfig, GatedLayer, PatchesEncoder
from ma2mba.data.batch import Sample, collate
from ma2mba.errors import UserError
from ma2mba.inference.session import Session
from ma2mba.magc import Plan
from ma2mba.model.base_config import DEFAULT_LAYER
from ma2mba.model.config import ModelConfig
from ma2mba.model.pretrained import load_model, read_config, save_model
from ma2mba.model.published import init_vision
from ma2mba.model.registry import BACKBONES, register_backbone
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.training.flops import ModelFlops
from ma2mba.training.recipe.schema import COMPONENTS
from ma2mba.training.streaming import streaming_loss
from tests.tiny import TINY_MODEL
from tests.unit.model.test_pretrained import tokenizer  # noqa: F401 (a fixture)

CONFIG = {
    "language_model": {"layer": "gated", "d_model": 16, "n_layer": 3, "vocab_size": 20},
    "vision": {"encoder": "patches", "image_size": 48, "patch_size": 16, "features": 10},
}


@pytest.fixture
def model() -> VideoMa2mba:
    torch.manual_seed(0)
    return VideoMa2mba(ModelConfig.model_validate(CONFIG))


def logits(model: VideoMa2mba) -> torch.Tensor:
    """Of one frame (9 tokens) and some text."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8, generator=generator)
    visual = torch.tensor([[-1, *range(9), -1, -1]])
    x = model.embed(torch.ones_like(visual), visual, frames)
    x, _ = model.run(x, model.initial_states(x))
    return model.logits(x)


def test_the_model_is_built_of_the_registered_classes(model):
    assert {type(layer) for layer in model.layers} == {GatedLayer}
    assert isinstance(model.vision, PatchesEncoder)
    assert model.config.tokens_per_frame == 9
    assert logits(model).shape == (1, 12, 32)
    logits(model).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_it_is_saved_with_its_names_and_loaded(model, tokenizer, tmp_path):  # noqa: F811
    save_model(model, tokenizer, tmp_path / "model")
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (written["text_config"]["layer"], written["vision_config"]["encoder"]) == ("gated", "patches")
    loaded, _ = load_model(tmp_path / "model")
    assert loaded.config == read_config(tmp_path / "model") == model.config
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)


def test_a_state_continues_a_sequence(model):
    x = torch.randn(2, 7, 16)
    whole, after = model.run(x, model.initial_states(x))
    first, middle = model.run(x[:, :3], model.initial_states(x))
    second, end = model.run(x[:, 3:], middle)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(end, after)


@pytest.mark.parametrize("plan", [Plan("sequence", 5, 3), Plan("layer", 7, 1)], ids=["sequence", "layer"])
def test_the_training_step_has_the_gradients_of_a_plain_one(model, plan):
    model = model.double()
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (2, 3, 48, 48), dtype=np.uint8)
    sample = Sample("a", np.arange(1, 9), np.arange(8) % 2 == 0, np.array([1, 4]), frames)
    batch = collate([sample], model.config.tokens_per_frame)
    x = model.embed(batch.ids_BS, batch.visual_BS, torch.from_numpy(frames))
    x, _ = model.run(x, model.initial_states(x))
    losses = model.loss_sum(x, batch.targets_BS), streaming_loss(model, batch, plan, 1.0)
    exact, found = (torch.autograd.grad(loss, list(model.parameters())) for loss in losses)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-12)


def test_a_session_reads_it_in_chunks(model, tokenizer):  # noqa: F811
    ids, visual = torch.ones(30, dtype=torch.int64), torch.tensor([-1, *range(18), *[-1] * 11])
    frames = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    sessions = [Session(model, Tokenizer.from_file(str(tokenizer)), chunk_tokens) for chunk_tokens in (4, 100)]
    for session in sessions:
        session.feed(ids, visual, frames)
    torch.testing.assert_close(sessions[0].logits(), sessions[1].logits())


def test_its_operations_are_counted(model):
    layer, frame = 2 * 3 * 16 * 16, 2 * 9 * 3 * 16 * 16 * 10
    projector, head = 2 * 9 * (10 * 16 + 16 * 16), 2 * 32 * 16
    expected = 3 * (3 * 5 * layer + projector + head) + 2 * frame
    assert ModelFlops(model.config, COMPONENTS).of_step(5, 1, 1) == expected


def test_what_it_does_not_offer_is_refused(model):
    with pytest.raises(UserError, match="GatedLayer cannot share a sequence"):
        model.layers[0].split(None)
    with pytest.raises(UserError, match="PatchesEncoder does not load published weights"):
        init_vision(model, "anywhere")
    with pytest.raises(UserError, match="GatedConfig does not read published weights"):
        GatedConfig.of_published("anywhere")
    assert model.layers[0].longest_call(1) is None
    assert model.layers[0].check_kernels(torch.device("cpu")) == []


@pytest.mark.parametrize(
    ("section", "fields", "key", "message"),
    [
        ("language_model", {"layer": "typo"}, "layer", "'typo' is unknown. Use one of: gated, mamba2"),
        ("vision", {"encoder": "typo"}, "encoder", "'typo' is unknown. Use one of: clip, patches"),
        ("language_model", {"d_model": 0}, "d_model", "greater than 0"),
        ("language_model", {"headdim": 8}, "headdim", "not permitted"),
    ],
)
def test_errors_name_the_key(section, fields, key, message):
    with pytest.raises(ValidationError) as refused:
        ModelConfig.model_validate(CONFIG | {section: CONFIG[section] | fields})
    (error,) = refused.value.errors()
    assert error["loc"] == (section, key)
    assert message in error["msg"]


def test_the_defaults_names_may_be_given_and_are_never_written():
    plain = ModelConfig.model_validate(TINY_MODEL)
    named = {key: TINY_MODEL[key] | name for key, name in (("language_model", {"layer": DEFAULT_LAYER}),)}
    named = ModelConfig.model_validate(TINY_MODEL | named)
    assert named == plain
    assert list(json.loads(named.model_dump_json())["language_model"]) == [
        *("d_model", "n_layer", "d_state", "headdim", "expand", "d_conv", "ngroups", "ssd_block"),
        *("vocab_size", "pad_vocab_size_multiple", "norm_eps"),
    ]
    assert list(named.model_dump()["vision"]) == [
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size"),
        *("patch_size", "hidden_act", "layer_norm_eps", "image_mean", "image_std"),
    ]


def test_a_name_is_registered_once_and_declared_by_its_config(monkeypatch):
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
    with pytest.raises(ValueError, match="gated is already registered"):
        register_backbone("gated", GatedConfig, PatchesEncoder)
    register_backbone("other", GatedConfig, GatedLayer)
    with pytest.raises(ValueError, match=r'Declare it as Literal\["other"\]'):
        BACKBONES.config("other")


def test_a_configuration_is_validated_without_torch():
    code = f"import sys; from ma2mba.model.config import ModelConfig; ModelConfig.model_validate({TINY_MODEL!r}); "
    code += "from ma2mba.model.sizes import SIZES; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

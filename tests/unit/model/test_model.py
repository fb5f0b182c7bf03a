"""The components of the model: vision encoder, backbone, loss."""

import pytest
import torch
from pydantic import ValidationError
from transformers import CLIPVisionConfig, CLIPVisionModel

from ma2mba.model.backbone import LanguageModel
from ma2mba.model.clip import ClipEncoder
from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.clip_layers import ACTIVATIONS, ClipTower
from ma2mba.model.config import ModelConfig
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.sizes import CLIP, SIZES
from ma2mba.model.video_ma2mba import VideoMa2mba

VISION = ClipConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14
)
BACKBONE = Mamba2Config(d_model=24, n_layer=2, d_state=8, headdim=8, ssd_block=8, vocab_size=20)


@pytest.fixture
def model() -> VideoMa2mba:
    torch.manual_seed(0)
    return VideoMa2mba(ModelConfig(language_model=BACKBONE, vision=VISION))


def frames(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 56, 56), dtype=torch.uint8)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_vision_tower_is_that_of_transformers(activation):
    """Same names, same bits; gelu_new is computed in another order (measured worst 6e-7)."""
    config = VISION.model_copy(update={"hidden_act": activation})
    torch.manual_seed(0)
    clip = CLIPVisionModel(CLIPVisionConfig(**config.model_dump(exclude={"image_mean", "image_std"}))).eval()
    tower = ClipTower(config, complete=True)
    tower.load_state_dict(clip.state_dict())
    pixels = torch.randn(2, 3, config.image_size, config.image_size)
    hidden = clip(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(tower(pixels), hidden, rtol=0, atol=2e-6 if activation == "gelu_new" else 0)


def test_a_new_vision_tower_begins_as_that_of_transformers():
    """The spread of each weight, of 4,096 values or more, within 5% (measured worst 2.9%)."""
    config = VISION.model_copy(update={"hidden_size": 256, "intermediate_size": 512})
    clip = CLIPVisionModel(CLIPVisionConfig(**config.model_dump(exclude={"image_mean", "image_std"})))
    tower = ClipTower(config, complete=True).state_dict()
    for name, weight in clip.state_dict().items():
        if weight.numel() >= 4096:
            assert float(tower[name].std()) == pytest.approx(float(weight.std()), rel=0.05), name
        elif "class" not in name and "position" not in name:
            assert torch.equal(tower[name], weight), name


def test_vision_is_clip_penultimate_layer_pooled_to_a_quarter():
    """Compared with the hidden states of transformers."""
    torch.manual_seed(0)
    fields = VISION.model_dump(exclude={"image_mean", "image_std"})
    clip = CLIPVisionModel(CLIPVisionConfig(**fields)).eval()
    encoder = ClipEncoder(VISION)
    encoder.clip.load_state_dict(clip.state_dict(), strict=False)
    frames_NCHW = frames(2)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (VISION.image_mean, VISION.image_std))
    hidden = clip(pixel_values=(frames_NCHW / 255 - mean) / std, output_hidden_states=True).hidden_states[-2][:, 1:]
    grid = hidden.unflatten(1, (2, 2, 2, 2)).mean(dim=(2, 4)).flatten(1, 2)
    torch.testing.assert_close(encoder(frames_NCHW), grid, rtol=1e-5, atol=1e-6)


def test_every_parameter_gets_a_gradient(model):
    visual = torch.tensor([[-1, 0, 1, 2, 3, -1]])
    x = model.embed(torch.ones(1, 6, dtype=torch.long), visual, frames(1))
    x, _ = model.run(x, model.initial_states(x))
    model.loss_sum(x, torch.full((1, 6), 3)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_embed_puts_each_visual_token_in_its_place(model):
    frames_NCHW = frames(2)
    tokens = model.projector(model.vision(frames_NCHW))
    visual = torch.tensor([[-1, 5, -1], [0, 7, 2]])
    ids = torch.tensor([[3, 0, 4], [0, 0, 0]])
    x = model.embed(ids, visual, frames_NCHW)
    table = model.language_model.backbone.embedding.weight
    for row, column, expected in [(0, 0, table[3]), (0, 1, tokens[1, 1]), (0, 2, table[4]), (1, 1, tokens[1, 3])]:
        torch.testing.assert_close(x[row, column], expected, rtol=0, atol=0)
    assert x.dtype == torch.float32


def test_only_supervised_positions_have_a_loss(model):
    x = torch.randn(2, 4, 24)
    targets = torch.tensor([[-100, 5, -100, -100], [-100, -100, -100, 2]])
    logits = model.logits(x)
    expected = -(logits[0, 1].log_softmax(-1)[5] + logits[1, 3].log_softmax(-1)[2])
    torch.testing.assert_close(model.loss_sum(x, targets), expected)
    assert model.loss_sum(x, torch.full((2, 4), -100)).item() == 0


def test_vocabulary_is_padded_and_the_head_tied(model):
    assert model.language_model.lm_head.weight is model.language_model.backbone.embedding.weight
    assert model.logits(torch.randn(1, 1, 24)).shape[-1] == 32


def test_a_head_of_its_own_is_initialised_as_a_linear_layer():
    config = Mamba2Config(d_model=512, n_layer=1, vocab_size=256, tie_embeddings=False)
    head = LanguageModel(config).lm_head.weight.detach()
    assert 0.99 / 512**0.5 < head.abs().max() <= 1 / 512**0.5
    assert head.std().item() == pytest.approx(1 / (3 * 512) ** 0.5, rel=0.05)


def test_only_a_head_of_its_own_is_named_in_the_configuration():
    values = BACKBONE.model_dump()
    assert "tie_embeddings" not in values
    untied = BACKBONE.model_copy(update={"tie_embeddings": False}).model_dump()
    assert untied == values | {"tie_embeddings": False}
    assert Mamba2Config.model_validate(untied).tie_embeddings is False


def test_paper_sizes():
    """144 tokens a frame, and 2.7B parameters of the largest backbone (the model of Table 7)."""
    assert CLIP.tokens_per_frame == 144
    with torch.device("meta"):
        model = VideoMa2mba(ModelConfig(language_model=SIZES["2.7b"], vision=CLIP))
    parameters = sum(p.numel() for p in model.language_model.parameters())
    assert 2.69e9 < parameters < 2.71e9


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"headdim": 7}, "multiple of headdim"), ({"ngroups": 4}, "multiple of ngroups"), ({"typo": 1}, "typo")],
)
def test_impossible_backbones_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Mamba2Config(**{"d_model": 24, "n_layer": 1, "headdim": 8, "vocab_size": 9} | fields)

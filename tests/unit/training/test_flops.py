"""The operations of a step by formula, against the matrix products that torch counts in the plain model."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ma2mba.model.clip import ClipEncoder
from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.config import ModelConfig
from ma2mba.model.mamba2 import Mamba2Layer
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.sizes import SIZES
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.training.fit.pricing import config_of_size
from ma2mba.training.flops import PEAKS, ModelFlops, device_peak
from ma2mba.training.recipe.schema import COMPONENTS
from tests.tiny import TINY_MODEL, UNTIED_MODEL


@pytest.fixture(autouse=True)
def attention_as_matrix_products():
    """torch's counter does not see the fused attention of a CPU."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def encoder_flops(config: ClipConfig) -> float:
    with torch.device("meta"):
        return sum(ClipEncoder(config).flops())


@pytest.fixture
def model() -> VideoMa2mba:
    torch.manual_seed(0)
    return VideoMa2mba(ModelConfig.model_validate(TINY_MODEL))


def test_a_layer(model):
    config = Mamba2Config(d_model=64, n_layer=1, d_state=16, headdim=16, ngroups=2, ssd_block=32)
    layer, x_BTD = Mamba2Layer(config), torch.randn(2, 96, 64)  # whole blocks: the reference pads the last
    with FlopCounterMode(display=False) as counter:
        layer(x_BTD, layer.initial_state(x_BTD))
    assert counter.get_total_flops() == 2 * 96 * sum(layer.flops())


def test_the_vision_encoder(model):
    with FlopCounterMode(display=False) as counter:
        model.vision(torch.zeros(3, 3, 28, 28, dtype=torch.uint8))
    assert counter.get_total_flops() == 3 * sum(model.vision.flops())


@pytest.mark.parametrize("values", [TINY_MODEL, UNTIED_MODEL], ids=["tied", "untied"])
@pytest.mark.parametrize("trained", [COMPONENTS, ("language_model",), ("projector",)])
def test_a_whole_step(trained, values):
    model = VideoMa2mba(ModelConfig.model_validate(values))
    for part in COMPONENTS:
        model.get_submodule(part).requires_grad_(part in trained)
    frames, K, targets = 4, model.config.tokens_per_frame, 10
    tokens = frames * K + 16
    visual_BT = torch.full((1, tokens), -1)
    visual_BT[0, : frames * K] = torch.arange(frames * K)
    targets_BT = torch.full((1, tokens), -100)
    targets_BT[0, -targets:] = 1
    with FlopCounterMode(display=False) as counter:
        x_BTD = model.embed(torch.zeros(1, tokens, dtype=torch.int64), visual_BT, torch.zeros(frames, 3, 28, 28).byte())
        x_BTD, _ = model.run(x_BTD, model.initial_states(x_BTD))
        model.loss_sum(x_BTD, targets_BT).backward()
    assert counter.get_total_flops() == ModelFlops(model.config, trained).of_step(tokens, frames, targets)


def test_features_skip_the_encoder_and_text_skips_the_projector():
    config = config_of_size("370m")
    flops = ModelFlops(config, ("projector",))
    seen = flops.of_step(1000, 5, 100)
    spared = seen - ModelFlops(config, ("projector",), pictures=False).of_step(1000, 5, 100)
    assert spared == pytest.approx(5 * encoder_flops(config.vision))
    assert flops.of_step(1000, 0, 100) < seen - spared


@pytest.mark.parametrize("size", SIZES)
def test_the_papers_models_need_six_operations_per_parameter_and_token(size):
    config = config_of_size(size)
    language = config.language_model
    matrices = 6 * language.n_layer * language.d_model * (3 * language.d_inner + 2 * language.d_state + language.heads)
    ours = ModelFlops(config, COMPONENTS).of_step(1, 0, 0)
    with torch.device("meta"):
        layer = Mamba2Layer(language)
    assert ours == matrices + 3 * language.n_layer * layer.flops().scan
    assert 1.02 < ours / matrices < 1.4  # the scan


def test_clip_at_336_pixels():
    published = 2 * 191e9  # of 24 layers
    assert encoder_flops(ClipConfig()) == pytest.approx(published * 23 / 24, rel=0.01)  # measured: 0.02%


def test_known_devices_and_others():
    assert device_peak(torch.device("cpu"), torch.bfloat16) is None
    names = [part for part, _ in PEAKS]
    assert all(names.index(longer) < names.index("H100") for longer in ("H100 PCIe", "H100 NVL"))

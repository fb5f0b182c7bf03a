"""The price of the GPU kernels without a GPU. tests/parity/test_kernels.py compares it with the real kernels."""

import pytest
import torch

from ma2mba.model.backbone import LanguageModel
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.ops import backend, kernels_on_meta, mamba2_layer, mamba2_layer_product
from ma2mba.ops.loss import cross_entropy_sum
from ma2mba.ops.types import LOSS_BLOCK
from ma2mba.planner.measure import measure
from ma2mba.planner.meter import measuring

CONFIG = Mamba2Config(d_model=256, n_layer=1)
META = torch.device("meta")


@pytest.fixture
def layer():
    with META:
        return LanguageModel(CONFIG).to(torch.bfloat16).backbone.layers[0]


def test_kernels_on_meta_holds_for_the_meta_device_within_its_block():
    with kernels_on_meta():
        assert backend(META) == "meta"
        assert backend(torch.device("cpu")) == "torch"
    assert backend(META) == "torch"


def test_a_layer_has_the_shapes_and_dtypes_of_plain_torch(layer):
    x = torch.empty(2, 300, 256, device="meta", requires_grad=True)
    state = [t.requires_grad_() for t in layer.initial_state(x)]
    plain = mamba2_layer(x, *state, layer.weights, layer.shape)
    with kernels_on_meta():
        kernels = mamba2_layer(x, *state, layer.weights, layer.shape)
        remembered = mamba2_layer_product(x, *state, layer.weights, layer.shape)
    for a, b in zip(plain, kernels, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert (remembered[3].shape, remembered[3].dtype) == (x.shape, torch.bfloat16)
    gradients = torch.autograd.grad(kernels, [x, *state], [torch.empty_like(t) for t in kernels])
    assert [g.shape for g in gradients] == [t.shape for t in (x, *state)]


def test_a_layer_saves_its_projection_its_scan_and_its_input(layer):
    """The same as `triton/layer.py` saves. Gradients of weights are added to the engine's sums."""
    x, lengths = torch.empty(1, 1, 256, device="meta"), (512, 1024)
    with kernels_on_meta():
        cost = measure([layer], x, lengths=lengths, persistent_sums=True)
    inner, width, heads = CONFIG.d_inner, CONFIG.d_model, CONFIG.heads
    a_token = 2 * (inner + CONFIG.conv_width + heads) + 2 * inner + 4 * width
    small = 4 * (2 * heads + CONFIG.conv_width * (CONFIG.d_conv + 1))
    for tokens in lengths:
        assert cost.layers[0].saved.at(tokens) == tokens * a_token + cost.stack.state + small
    assert cost.layers[0].gradients == 0
    assert (cost.layers[0].memo, cost.layers[0].memo_flops) == (2 * width, 2 * inner * width)
    plain = measure([layer], x, lengths=lengths)
    assert plain.layers[0].gradients == plain.layers[0].weights == cost.layers[0].weights
    assert plain.layers[0].backward.at(1024) > 2 * cost.layers[0].backward.at(1024)
    assert plain.layers[0].flops.at(1024) > cost.layers[0].flops.at(1024) > 0.5 * plain.layers[0].flops.at(1024)


@pytest.mark.parametrize("positions", [LOSS_BLOCK, LOSS_BLOCK + 256])
def test_logits_exist_for_one_block_at_a_time(positions):
    x = torch.empty(positions, 64, device="meta", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.empty(1000, 64, device="meta", dtype=torch.bfloat16, requires_grad=True)
    with kernels_on_meta():
        loss = cross_entropy_sum(x, weight, torch.empty(positions, device="meta", dtype=torch.int64))
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    kept = [t.shape[-1] for t in loss.grad_fn.saved_tensors]
    assert (1000 in kept) == (positions <= LOSS_BLOCK)
    assert torch.autograd.grad(loss, x)[0].shape == x.shape


def test_without_a_graph_the_loss_computes_no_gradients():
    """`needs_input_grad` of a custom function is True there too."""
    x = torch.empty(2 * LOSS_BLOCK, 64, device="meta", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.empty(1000, 64, device="meta", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.empty(2 * LOSS_BLOCK, device="meta", dtype=torch.int64)
    peaks = []
    for graph in (True, False):
        with kernels_on_meta(), torch.set_grad_enabled(graph), measuring(META) as meter:
            cross_entropy_sum(x, weight, targets)
        peaks.append(meter.peak)
    gradients = 2 * x.numel() + 4 * weight.numel()
    assert peaks[0] - peaks[1] == gradients

"""A model folder's own layer on a GPU, with mamba-ssm and causal-conv1d, against plain torch in fp64.

Skipped without a GPU and the kernels. The bounds are those of tests/parity/test_kernels.py.
"""

import copy

import pytest
import torch

from ma2mba.model.hf.code.configuration_video_ma2mba import VideoMa2mbaTextConfig
from ma2mba.model.hf.code.mamba2_video_ma2mba import VideoMa2mbaLayer, kernels
from ma2mba.ops.selftest import relative

ON_GPU = torch.cuda.is_available() and kernels() is not None
pytestmark = pytest.mark.skipif(not ON_GPU, reason="needs a GPU with mamba-ssm and causal-conv1d")
BOUND = 4e-2


@pytest.fixture
def layers():
    """Return a layer in bf16 on the GPU, and the same layer in fp64 on the CPU."""
    torch.manual_seed(0)
    layer = VideoMa2mbaLayer(VideoMa2mbaTextConfig(d_model=256, n_layer=1))
    with torch.no_grad():
        layer.mixer.A_log.copy_(torch.empty(8).uniform_(1, 16).log())
        layer.mixer.dt_bias.uniform_(-4, -2)
        layer.mixer.D.fill_(1.0)
    low = layer.to("cuda", torch.bfloat16)
    return low, copy.deepcopy(low).to("cpu", torch.float64)


def worst(found, expected) -> float:
    return max(relative(a.detach().cpu(), b.detach()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("pads", [None, [0, 37]])
@pytest.mark.parametrize("tokens", [300, 512])
def test_layer_and_gradients_with_padding_in_a_second_chunk(layers, tokens, pads):
    torch.manual_seed(1)
    x = torch.randn(2, tokens + 100, 256)
    found = []
    for layer, device, dtype in zip(layers, ("cuda", "cpu"), (torch.float32, torch.float64), strict=True):
        given = x.to(device, dtype, copy=True).requires_grad_()
        first, conv, ssm = layer(given[:, :100], None, None, None)
        pads_B = None if pads is None else torch.tensor(pads, device=device)
        second, conv, ssm = layer(given[:, 100:], conv, ssm, pads_B)
        read = second if pads is None else second * (torch.arange(tokens, device=device) >= pads_B[:, None])[..., None]
        (first.double().sin().sum() + read.double().sin().sum() + ssm.double().square().sum()).backward()
        found.append([first, read, conv, ssm, given.grad, *(p.grad for p in layer.parameters())])
    assert worst(*found) < BOUND


def test_steps_of_one_token(layers):
    torch.manual_seed(2)
    x = torch.randn(2, 60, 256)
    found = []
    with torch.no_grad():
        for layer, device, dtype in zip(layers, ("cuda", "cpu"), (torch.float32, torch.float64), strict=True):
            given = x.to(device, dtype)
            y, conv, ssm = layer(given[:, :50], None, None, None)
            kept = ssm.clone()
            steps, states = [y], (conv, ssm)
            for t in range(50, 60):
                y, *states = layer(given[:, t : t + 1], *states, None)
                steps.append(y)
            assert torch.equal(ssm, kept), "a step changed the states that it was given"
            found.append([torch.cat(steps, dim=1), *states])
    assert worst(*found) < BOUND

"""How a model folder's layer calls the GPU kernels: stand-ins with their signatures compare shapes and distances here.

tests/parity/test_hf_kernels.py runs the kernels themselves on a GPU.
"""

import sys

import pytest
import torch
from torch.nn import functional as F

from ma2mba.model.hf.code import mamba2_video_ma2mba as code
from ma2mba.model.hf.code.configuration_video_ma2mba import VideoMa2mbaTextConfig
from tests.unit.model.hf_folder import worst


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None, activation=None):
    channels, taps = weight.shape
    assert (x.shape[1], bias.shape, activation) == (channels, (channels,), "silu")
    assert (x.stride(1), x.stride(0) % 8, x.stride(2) % 8) == (1, 0, 0)
    return F.silu(F.conv1d(x, weight[:, None], bias, padding=taps - 1, groups=channels)[..., : x.shape[2]])


def mamba_chunk_scan_combined(
    x, dt, A, B, C, chunk_size, D=None, dt_bias=None, initial_states=None, dt_softplus=False, return_final_states=False
):
    (batch, tokens, heads, width), states = x.shape, B.shape[-1]
    assert (dt.shape, A.shape, D.shape) == ((batch, tokens, heads), (heads,), (heads,))
    assert (B.shape, initial_states.shape) == (C.shape, (batch, heads, width, states))
    assert dt_softplus
    assert return_final_states
    return code.ssd_scan(x, dt, A, B, C, D, dt_bias, initial_states, chunk_size)


def selective_state_update(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    rows, heads, width, states = state.shape
    assert x.shape == dt.shape == (rows, heads, width)
    assert (A.shape, D.shape, dt_bias.shape) == ((heads, width, states), (heads, width), (heads, width))
    assert (*A.stride()[1:], dt.stride(-1), dt_bias.stride(-1)) == (0, 0, 0, 0), "the kernel takes its slow path"
    assert dt_softplus
    B, C = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (B, C))
    dt = F.softplus(dt + dt_bias)
    state.copy_(state * torch.exp(dt[..., None] * A) + (dt * x)[..., None] * B[:, :, None])
    return (state * C[:, :, None]).sum(-1) + x * D


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = code.VideoMa2mbaLayer(VideoMa2mbaTextConfig(d_model=64, n_layer=1, d_state=16, headdim=16, ngroups=2))
    with torch.no_grad():
        layer.mixer.A_log.copy_(torch.empty(8).uniform_(1, 16).log())
        layer.mixer.dt_bias.uniform_(-4, -2)
        layer.mixer.D.fill_(1.0)
    return layer


def results(layer, x):
    layer.zero_grad()
    given = x.clone().requires_grad_()
    first, conv, ssm = layer(given[:, :40], None, None, torch.tensor([0, 7]))
    second, conv, ssm = layer(given[:, 40:89], conv, ssm, None)
    (first[:, 7:].sum() + second.sum() + ssm.sum()).backward()
    with torch.no_grad():
        before = ssm.clone()
        last, *after = layer(x[:, 89:], conv, ssm, None)
    assert torch.equal(ssm, before), "a step changed the state that it was given"
    return [first[:, 7:], second, last, *after, given.grad, *(p.grad.clone() for p in layer.parameters())]


def test_kernels_are_called_as_they_are_documented(layer, monkeypatch):
    x = torch.randn(2, 90, 64)
    expected = results(layer, x)
    gpu = code.Kernels(causal_conv1d_fn, mamba_chunk_scan_combined, selective_state_update)
    monkeypatch.setattr(code, "kernels_for", lambda tensor: gpu)
    found = results(layer, x)
    assert max(worst(a, b) / (1 + float(b.detach().abs().max())) for a, b in zip(found, expected, strict=True)) < 1e-5


def test_missing_kernels_are_named_once(monkeypatch):
    warnings = []
    monkeypatch.setattr(code.logger, "warning", warnings.append)
    monkeypatch.setitem(sys.modules, "causal_conv1d", None)
    code.kernels.cache_clear()
    assert code.kernels() is code.kernels() is None
    code.kernels.cache_clear()
    assert len(warnings) == 1
    assert "install mamba-ssm and causal-conv1d" in warnings[0]

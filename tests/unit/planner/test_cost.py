"""Prices of layers: counted storages, meta device against CPU, and lengths that were not run."""

import time

import pytest
import torch
from torch import nn

from ma2mba.magc.cell import Piece
from ma2mba.model.mamba2 import Mamba2Layer
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.planner.cost import Curve
from ma2mba.planner.measure import measure, price
from ma2mba.planner.meter import measuring
from ma2mba.planner.speed import clock
from tests.parity.recurrent_layers import GRULayer

CPU = torch.device("cpu")


def mamba(width: int = 64, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Mamba2Layer:
    with torch.device(device):
        config = Mamba2Config(d_model=width, n_layer=1, d_state=16, headdim=16, ssd_block=32, vocab_size=64)
        return Mamba2Layer(config).to(dtype)


def layer_inputs(layer: nn.Module, width: int, device: str = "cpu"):
    def inputs(tokens: int):
        x = torch.zeros(1, tokens, width, device=device)
        return (x,), [tuple(layer.initial_state(x))]

    return inputs


def test_live_bytes_are_those_of_storages_that_are_referenced():
    there_before = torch.zeros(1000)
    with measuring(CPU) as meter:
        a = torch.zeros(250)
        view, moved = a[:10], there_before.view(10, 100)
        assert meter.live == 1000
        del a
        assert meter.live == 1000, "the view holds the storage"
        b = view + 1
        assert meter.live == 1000 + 40
        del view, b
        assert (meter.live, meter.peak) == (0, 1040)
    assert moved.numel() == 1000


@pytest.mark.parametrize("kind", [mamba, GRULayer])
def test_the_meta_device_costs_what_the_cpu_costs(kind):
    """Equal to the byte."""
    lengths = (16, 32)
    torch.manual_seed(0)
    real = kind(64)
    shadow = kind(64).to("meta")
    on_cpu = price(Piece.of_layer(real), layer_inputs(real, 64), lengths)
    on_meta = price(Piece.of_layer(shadow), layer_inputs(shadow, 64, "meta"), lengths)
    assert on_meta == on_cpu


def test_saved_bytes_are_the_saved_tensors_and_the_outputs():
    layer, x = mamba(), torch.randn(1, 96, 64, requires_grad=True)
    state = tuple(t.requires_grad_() for t in layer.initial_state(x))
    storages: dict[int, int] = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, after = layer(x, state)
    for tensor in (y, *after):
        pack(tensor)
    for tensor in (x, *state, *layer.parameters()):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    saved = price(Piece.of_layer(layer), layer_inputs(layer, 64), (96,)).saved.at(96)
    assert saved == pytest.approx(sum(storages.values()), rel=0.01)


def test_a_length_that_was_not_run_is_on_the_line():
    """Measured worst case: 0.2% at eight times the longest length."""
    layer = mamba(device="meta")
    cost = price(Piece.of_layer(layer), layer_inputs(layer, 64, "meta"), (64, 128))
    run = price(Piece.of_layer(layer), layer_inputs(layer, 64, "meta"), (1024,))
    for name in ("saved", "forward", "backward", "flops"):
        assert getattr(cost, name).at(1024) == pytest.approx(getattr(run, name).at(1024), rel=0.01), name


def test_bytes_depend_on_the_dtype():
    x = torch.empty(1, 1, 64, device="meta")
    half, full = (measure([mamba(64, "meta", dtype)] * 2, x) for dtype in (torch.bfloat16, torch.float32))
    assert half.layers[0].gradients * 2 == full.layers[0].gradients
    assert half.sums == full.sums == 2 * 4 * sum(p.numel() for p in mamba().parameters())
    assert half.layers[0].saved.at(1024) < full.layers[0].saved.at(1024)


def test_curve():
    curve = Curve(((10, 100.0), (20, 150.0), (40, 350.0)))
    assert [curve.at(tokens) for tokens in (10, 15, 30, 50, 5, 0)] == [100, 125, 250, 450, 75, 50]
    assert Curve(((1, 0.0), (2, 10.0))).at(0) == 0.0
    with pytest.raises(ValueError, match="growing"):
        Curve(((2, 1.0), (2, 1.0)))


class Ticking(nn.Module):
    """A layer that moves a clock: a forward takes 2 s and 1 s per token, a backward 100 s."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, state):
        self.seconds += 2 + x.shape[1]
        y = x * self.scale
        if y.requires_grad:
            y.register_hook(self.tick_backward)
        return y, state

    def tick_backward(self, gradient):
        self.seconds += 100

    def initial_state(self, x):
        return (x.new_zeros(1),)


def test_clock_returns_the_seconds_of_one_run(monkeypatch):
    layer, x = Ticking(), torch.zeros(1, 1, 4)
    cost = measure([layer], x, lengths=(8, 16))
    monkeypatch.setattr(time, "perf_counter", lambda: layer.seconds)
    speed = clock([layer], x, cost, lengths=(16, 8)).layers[0]
    assert speed.forward.points == ((8, 10), (16, 18))
    assert speed.backward.points == ((8, 110), (16, 118)), "a forward with a graph and a backward"

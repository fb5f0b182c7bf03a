"""Models whose layers are not alike: predicted peaks against counted bytes, and one measurement for each kind."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ma2mba.magc import Plan
from ma2mba.model.mamba2 import Mamba2Layer
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.planner import cost as cost_module
from ma2mba.planner import measure as measure_module
from ma2mba.planner.cost import LayerGroups
from ma2mba.planner.measure import first_alike, measure
from ma2mba.planner.predict import Prediction, predict
from ma2mba.planner.schedule import Workload
from ma2mba.planner.speed import clock, estimate
from tests.unit.planner.counting import counted

WIDTH, TOKENS, LENGTHS = 32, 128, (16, 32, 64)
WITHIN = 0.05
"""Measured worst case: 2%."""


class GRULayer(nn.Module):
    """A GRU whose hidden state is narrower or wider than what flows through the layers."""

    def __init__(self, hidden: int):
        super().__init__()
        self.cell, self.out = nn.GRUCell(WIDTH, hidden), nn.Linear(hidden, WIDTH, bias=False)

    def forward(self, x: Tensor, state: tuple[Tensor]) -> tuple[Tensor, tuple[Tensor]]:
        (hidden,) = state
        outputs = []
        for token in x.unbind(1):
            hidden = self.cell(token, hidden)
            outputs.append(hidden)
        return x + self.out(torch.stack(outputs, dim=1)), (hidden,)

    def initial_state(self, x: Tensor) -> tuple[Tensor]:
        return (x.new_zeros(x.shape[0], self.cell.hidden_size),)


class RememberingGRU(GRULayer):
    """Keeps its output as a memo, and does not use the memo."""

    def remember(self, x, state):
        y, after = self(x, state)
        return y, after, y - x

    def recall(self, x, state, memo):
        return self(x, state)


def mamba(d_state: int) -> Mamba2Layer:
    config = Mamba2Config(d_model=WIDTH, n_layer=1, d_state=d_state, headdim=16, ssd_block=16, vocab_size=64)
    return Mamba2Layer(config)


KINDS = {
    "g": lambda: GRULayer(8),
    "G": lambda: GRULayer(256),
    "m": lambda: mamba(16),
    "M": lambda: mamba(128),
    "f": lambda: mamba(16).requires_grad_(False),
    "r": lambda: RememberingGRU(16),
}


def stack(kinds: str) -> nn.ModuleList:
    return nn.ModuleList(KINDS[kind]() for kind in kinds)


def predicted(layers: nn.ModuleList, plan: Plan, tokens: int = TOKENS) -> Prediction:
    cost = measure(layers, torch.empty(1, 1, WIDTH), lengths=LENGTHS)
    return predict(cost, estimate(cost), Workload(tokens), plan)


@pytest.mark.parametrize("group_layers", [1, 2, 5])
@pytest.mark.parametrize("nesting", ["sequence", "layer"])
@pytest.mark.parametrize("kinds", ["gGgGg", "mmmGG", "GmMMg", "MffmG"])
def test_unlike_layers_take_the_predicted_bytes(kinds, nesting, group_layers):
    layers, plan = stack(kinds), Plan(nesting, 32, group_layers)
    assert predicted(layers, plan).device_bytes == pytest.approx(counted(layers, TOKENS, WIDTH, plan), rel=WITHIN)


def test_states_kept_rarely_take_the_predicted_bytes():
    layers, plan = stack("mMGg"), Plan("sequence", 16, 2, stash_every=3)
    assert predicted(layers, plan, 176).device_bytes == pytest.approx(counted(layers, 176, WIDTH, plan), rel=WITHIN)


@pytest.mark.parametrize(("group_layers", "moment"), [(5, "its layer 3 of 5"), (1, "group 3 of 5: its last layer")])
def test_the_peak_may_be_in_the_middle(group_layers, moment):
    layers, plan = stack("ggGgg"), Plan("sequence", 64, group_layers)
    found = predicted(layers, plan)
    assert found.moment.endswith(moment)
    assert found.device_bytes == pytest.approx(counted(layers, TOKENS, WIDTH, plan), rel=WITHIN)


def test_the_ends_of_runs_are_where_memory_can_peak(monkeypatch):
    """Compared with a look at every layer of every group."""
    choose, kinds = random.Random(0), "gGmMf"
    measured = measure(stack(kinds), torch.empty(1, 1, WIDTH), lengths=LENGTHS)
    prices = dict(zip(kinds, measured.layers, strict=True))
    cases = []
    for _ in range(300):
        runs = "".join(choose.choice(kinds) * choose.randint(1, 4) for _ in range(3))
        cost = replace(measured, layers=tuple(prices[kind] for kind in runs))
        nesting, every = choose.choice(["sequence", "layer"]), choose.choice([1, 3])
        plan = Plan(nesting, 16, choose.randint(1, len(runs)), stash_every=every)
        cases.append((cost, plan, predict(cost, estimate(cost), Workload(144), plan).device_bytes))
    monkeypatch.setattr(cost_module, "runs_of", lambda layers: tuple((layer, 1) for layer in layers))
    monkeypatch.setattr(LayerGroups, "edges", property(lambda self: range(len(self))))
    for cost, plan, ends in cases:
        fresh = replace(cost)
        assert predict(fresh, estimate(fresh), Workload(144), plan).device_bytes == pytest.approx(ends, abs=8)


def test_memos_are_of_those_layers_that_have_them():
    layers, plan = stack("grrg"), Plan("sequence", 32, 4, memo_chunks=2)
    assert predicted(layers, plan).device["memos"] == 2 * 2 * 32 * WIDTH * 4
    assert predicted(stack("gg"), plan).device["memos"] == 0
    assert predicted(layers, plan).device_bytes == pytest.approx(counted(layers, TOKENS, WIDTH, plan), rel=WITHIN)


def test_each_kind_is_measured_once(monkeypatch):
    measured, price_layer = [], measure_module.price_layer

    def note(layer, *rest):
        measured.append(layer)
        return price_layer(layer, *rest)

    monkeypatch.setattr(measure_module, "price_layer", note)
    layers = stack("gGgmmG")
    cost = measure(layers, torch.empty(1, 1, WIDTH), lengths=LENGTHS)
    assert measured == [layers[0], layers[1], layers[3]]
    assert [cost.layers.index(price) for price in cost.layers] == [0, 1, 0, 3, 3, 1]
    assert cost.stack.state == 4 * (8 + 256 + 8 + 256) + 2 * cost.layers[3].state


def test_layers_are_alike_when_nothing_that_costs_differs():
    one, other, wide, frozen, half = mamba(16), mamba(16), mamba(128), mamba(16).requires_grad_(False), mamba(16).half()
    dropout = GRULayer(8), GRULayer(8)
    for number, layer in enumerate(dropout):
        layer.layer_idx, layer.rate = number, 0.1
    later = GRULayer(8)
    later.layer_idx, later.rate = 2, 0.2
    layers = [one, other, wide, frozen, half, *dropout, later]
    assert first_alike(layers) == [one, one, wide, frozen, half, dropout[0], dropout[0], later]


def test_speeds_are_those_of_each_layer():
    layers, like_x = stack("gMg"), torch.zeros(1, 1, WIDTH)
    cost = measure(layers, like_x, lengths=LENGTHS)
    for speed in (estimate(cost), clock(layers, like_x, cost, LENGTHS, repeats=1)):
        gru, wide, again = speed.layers
        assert gru is again
        assert gru != wide
        for captured, forward in ((False, "forward"), (True, "captured_forward")):
            one, other = (getattr(layer, forward).at(64) for layer in (gru, wide))
            sums = [speed.forward(64, captured, layers) for layers in (1, 2, 3)]
            assert sums == pytest.approx([one, one + other, 2 * one + other])
        assert speed.backward(64, captured=False) == pytest.approx(2 * gru.backward.at(64) + wide.backward.at(64))

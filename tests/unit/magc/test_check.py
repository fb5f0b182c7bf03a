"""`ma2mba.magc.check` accepts exact layers and names what is wrong with others."""

import random

import pytest
import torch
from torch import nn

from ma2mba.magc import Plan, check
from tests.parity.own_layers import OWN, GRULayer
from tests.parity.recurrent_layers import mamba_layers

WIDTH, PLAN = 8, Plan(chunk_tokens=5, group_layers=2)


class Layer(nn.Module):
    """A layer that breaks one rule."""

    def __init__(self, rule: str):
        super().__init__()
        self.rule, self.kept = rule, []
        self.norm, self.conv = nn.BatchNorm1d(WIDTH), nn.Conv1d(WIDTH, WIDTH, 3)
        self.project = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, state):
        (carried,) = state
        if self.rule == "hidden state":
            self.kept.append(x.mean())
            x = x + sum(self.kept)
        if self.rule == "random":
            x = x * random.random()
        if self.rule == "mean":
            x = x - x.mean(1, keepdim=True)
        if self.rule == "batch norm":
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        if self.rule == "convolution":
            x = x + self.conv(nn.functional.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)
        if self.rule == "growing":
            return x + self.project(x), (torch.cat([carried, x], 1),)
        if self.rule == "detached":
            carried = carried.detach()
        sums = carried[:, :1] + self.project(x).cumsum(1)
        return x + sums.sin(), (sums[:, -1:],)

    def initial_state(self, x):
        return (x.new_zeros(x.shape[0], 1, WIDTH),)


@pytest.mark.parametrize("nesting", ["sequence", "layer"])
@pytest.mark.parametrize("kind", [*OWN, "mamba"])
def test_exact_layers_are_accepted_and_do_not_change(kind, nesting):
    torch.manual_seed(0)
    layers = mamba_layers(3, WIDTH).float() if kind == "mamba" else nn.ModuleList(OWN[kind](WIDTH) for _ in range(3))
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    assert check(layers, torch.randn(2, 13, WIDTH), Plan(nesting, 5, 2)) is None
    assert all(torch.equal(before[name], value) for name, value in layers.state_dict().items())
    assert all(p.grad is None for p in layers.parameters())


class Dropping(GRULayer):
    def __init__(self, width: int):
        super().__init__(width)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, state):
        y, state = super().forward(x, state)
        return self.drop(y), state


def test_dropout_is_switched_off():
    layers = nn.ModuleList([Dropping(WIDTH), GRULayer(WIDTH)])
    check(layers, torch.randn(2, 13, WIDTH), PLAN)
    assert layers[0].drop.training


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("hidden state", "two calls with the same x and state differ"),
        ("random", "two calls with the same x and state differ"),
        ("mean", "the result depends on where the sequence is cut: from token 0 on y"),
        ("batch norm", "forward changes norm.running_mean"),
        ("batch norm", "the buffer `num_batches_tracked` changed in forward"),
        ("convolution", "the result depends on where the sequence is cut: from token 5 on y"),
        ("growing", r"the state grows with the sequence: \[\(2, 6, 8\)\] and \[\(2, 11, 8\)\]"),
        ("detached", r"gradient of project.weight: MA-GC and a plain run differ by 0\.\d"),
    ],
)
def test_a_broken_rule_is_named(rule, words):
    torch.manual_seed(0)
    layers = nn.ModuleList([GRULayer(WIDTH), Layer(rule), GRULayer(WIDTH)])
    with pytest.raises(ValueError, match=rf"layer 1 \(Layer\).*{words}") as caught:
        check(layers, torch.randn(2, 13, WIDTH), PLAN)
    assert "layer 2 (GRULayer): two calls" not in str(caught.value)


def test_one_chunk_compares_nothing():
    with pytest.raises(ValueError, match=r"more than plan\.chunk_tokens=5 tokens"):
        check([GRULayer(WIDTH)], torch.randn(2, 5, WIDTH), PLAN)

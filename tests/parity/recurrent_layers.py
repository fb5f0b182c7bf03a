"""Layers for tests of the engine: Mamba-2, a GRU cell, and a wrapper that counts runs."""

from collections import Counter

import torch
from torch import Tensor, nn

from ma2mba.model.mamba2 import Mamba2Layer
from ma2mba.model.mamba2_config import Mamba2Config


class GRULayer(nn.Module):
    """A recurrent layer that is not this project's: a GRU cell, run token by token, with a residual."""

    def __init__(self, width: int):
        super().__init__()
        self.cell = nn.GRUCell(width, width)

    def forward(self, x: Tensor, state: tuple[Tensor]) -> tuple[Tensor, tuple[Tensor]]:
        (hidden,) = state
        outputs = []
        for token in x.unbind(1):
            hidden = self.cell(token, hidden)
            outputs.append(hidden)
        return x + torch.stack(outputs, dim=1), (hidden,)

    def initial_state(self, x: Tensor) -> tuple[Tensor]:
        return (x.new_zeros(x.shape[0], x.shape[2]),)


class Counted(nn.Module):
    """Counts the runs of a layer on each chunk. The first value and the length identify a chunk."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.runs: Counter[tuple[float, int]] = Counter()

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        self.runs[(x.flatten()[0].item(), x.shape[1])] += 1
        return self.layer(x, state)

    def initial_state(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.layer.initial_state(x)


def mamba_layers(count: int, width: int = 16) -> nn.ModuleList:
    config = Mamba2Config(d_model=width, n_layer=count, d_state=8, headdim=8, ngroups=2, ssd_block=4, vocab_size=16)
    return nn.ModuleList(Mamba2Layer(config) for _ in range(count)).double()


def gru_layers(count: int, width: int = 16) -> nn.ModuleList:
    return nn.ModuleList(GRULayer(width) for _ in range(count)).double()


def run_plainly(layers: nn.ModuleList, x: Tensor, states: list) -> tuple[Tensor, list]:
    after = []
    for layer, state in zip(layers, states, strict=True):
        x, state = layer(x, state)
        after.append(state)
    return x, after

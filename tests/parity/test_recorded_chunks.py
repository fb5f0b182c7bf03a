"""What is copied into and out of a recorded chunk's fixed memory, without a GPU: recorded work runs again instead.

The graphs themselves are tested in test_kernels.py, on a GPU.
"""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from ma2mba.magc import graphs
from ma2mba.magc.api import _run
from ma2mba.magc.cell import Cell, Piece, StandingSink
from ma2mba.magc.ends import Summed
from ma2mba.magc.graphs import Graphed
from ma2mba.magc.layers import Chain
from ma2mba.magc.live import Live
from ma2mba.magc.scan import Scan
from tests.parity.worlds import gru_layers, mamba_layers, run_plainly

WIDTH = 16


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(graphs, "_recording_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(Graphed, "_do", lambda self, recording, name, run: run())


def front(x: Tensor, weigh: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x * 2, weigh.exp(), places


def head(x: Tensor, weigh: Tensor, places: Tensor) -> tuple[Tensor]:
    return ((x * weigh).flatten()[places].sin().sum(),)


@pytest.mark.parametrize("tokens", [16, 17])
@pytest.mark.parametrize("every", [1, 2, 4])
@pytest.mark.parametrize("world", [gru_layers, mamba_layers])
def test_gradients_are_those_of_a_plain_run(world, every, tokens):
    """A whole and a ragged last chunk, other numbers of places in every chunk, a gradient that passes the layers by."""
    torch.manual_seed(0)
    layers = world(2)
    x, weigh = (torch.randn(2, tokens, WIDTH, dtype=torch.double) for _ in range(2))
    scale = torch.nn.Parameter(torch.ones((), dtype=torch.double))
    scaling = torch.nn.ParameterList([scale])
    pieces = [Piece.of_layer(layer) for layer in layers]
    cells = [
        Cell([Piece.of_function(lambda x, w, p: front(x, w * scale, p), [scaling])]),
        Cell(pieces),
        Cell([Piece.of_function(head, [])]),
    ]
    root = Scan(Chain([Live(cells[0]), Graphed(cells[1], 4), Live(cells[2])]), "device", every)
    parameters = (scale, *layers.parameters())
    places = [torch.arange(0, 2 * min(4, tokens - start) * WIDTH, 3 + start) for start in range(0, tokens, 4)]
    chunks = [*zip(x.split(4, 1), weigh.split(4, 1), places, strict=True)]
    states = [layer.initial_state(x) for layer in layers]
    sink = StandingSink(parameters)
    for _ in range(2):
        total, _ = _run(root, parameters, Summed(chunks), None, states, sink)
        found = torch.autograd.grad(total, parameters)
    y, _ = run_plainly(layers, x * 2, states)
    parts = zip(y.split(4, 1), (weigh * scale).exp().split(4, 1), places, strict=True)
    expected = torch.autograd.grad(sum(head(*part)[0] for part in parts), parameters)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)

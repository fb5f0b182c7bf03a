"""What a captured chunk copies into and out of its fixed memory, without a GPU: the work runs where a GPU replays.

The graphs themselves are tested in test_kernels.py, on a GPU.
"""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from ma2mba.magc import Plan, Streamer, gradients, graphs
from ma2mba.magc.api import _nest_captured
from ma2mba.magc.cell import Cell, Piece
from ma2mba.magc.chunk_io import Summed
from ma2mba.magc.gradients import PersistentSums
from ma2mba.magc.graphs import CapturedCell
from ma2mba.magc.run import Run, apply, weights_of
from tests.parity.recurrent_layers import gru_layers, mamba_layers, run_plainly

WIDTH = 16


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(graphs, "_capture_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())


@pytest.fixture
def run_again(monkeypatch):
    monkeypatch.setattr(CapturedCell, "_run_or_replay", lambda self, capture, name, run: run())


def front(x: Tensor, weigh: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x * 2, weigh.exp(), places


def head(x: Tensor, weigh: Tensor, places: Tensor) -> tuple[Tensor]:
    return ((x * weigh).flatten()[places].sin().sum(),)


@pytest.mark.parametrize("tokens", [16, 17])
@pytest.mark.parametrize("every", [1, 2, 4])
@pytest.mark.parametrize("make_layers", [gru_layers, mamba_layers])
def test_gradients_are_those_of_a_plain_run(make_layers, every, tokens, run_again):
    """The last chunk is whole or short, chunks have different numbers of places, a gradient bypasses the layers."""
    torch.manual_seed(0)
    layers = make_layers(2)
    x, weigh = (torch.randn(2, tokens, WIDTH, dtype=torch.double) for _ in range(2))
    scale = torch.nn.Parameter(torch.ones((), dtype=torch.double))
    scaling = torch.nn.ParameterList([scale])
    pieces = [Piece.of_layer(layer) for layer in layers]
    cells = [
        Cell([Piece.of_function(lambda x, w, p: front(x, w * scale, p), [scaling])]),
        Cell(pieces),
        Cell([Piece.of_function(head, [])]),
    ]
    root = _nest_captured(cells, Plan(chunk_tokens=4, stash_every=every))
    parameters = (scale, *layers.parameters())
    places = [torch.arange(0, 2 * min(4, tokens - start) * WIDTH, 3 + start) for start in range(0, tokens, 4)]
    chunks = [*zip(x.split(4, 1), weigh.split(4, 1), places, strict=True)]
    states = [layer.initial_state(x) for layer in layers]
    sums = PersistentSums(parameters)
    for _ in range(2):
        total, _ = apply(Run(root, cells, weights_of(cells), Summed(chunks), True, sums), None, states)
        found = torch.autograd.grad(total, parameters)
    y, _ = run_plainly(layers, x * 2, states)
    parts = zip(y.split(4, 1), (weigh * scale).exp().split(4, 1), places, strict=True)
    expected = torch.autograd.grad(sum(head(*part)[0] for part in parts), parameters)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


class Captured:
    """Stands for a CUDA graph: the work runs once, during the capture, and a replay does nothing."""

    def replay(self):
        pass

    def pool(self):
        return None


def test_a_forward_without_a_backward_changes_no_gradient(monkeypatch):
    """The first tape is never used. The same inputs then run until tape and backward are captured."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Captured)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())
    torch.manual_seed(0)
    layers = gru_layers(2)
    x = torch.randn(2, 4, WIDTH, dtype=torch.double)
    states = [layer.initial_state(x) for layer in layers]
    root = CapturedCell(Cell([Piece.of_layer(layer) for layer in layers]), 4)
    parameters = tuple(layers.parameters())
    expected = torch.autograd.grad(run_plainly(layers, x, states)[0].sum(), parameters)
    sums = PersistentSums(parameters)
    root.forward((x,), states, keep=True)
    for turn in range(3):
        _, _, residual = root.forward((x,), states, keep=True)
        with sums:
            root.backward(residual, (torch.ones_like(x),), [(None,) * len(state) for state in states], sums)
            found = [sums.take(parameter) for parameter in parameters]
        if turn < 2:  # the replay of the stand-in adds nothing
            for a, b in zip(found, expected, strict=True):
                assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    assert root._capture.graphs.keys() == {"tape", "backward"}


@pytest.mark.parametrize("kind", [torch.float32, "meta"])
def test_layers_that_move_after_the_streamer_was_made_are_an_error(kind):
    layers = gru_layers(1)
    x = torch.randn(1, 4, WIDTH, dtype=torch.double)
    states = [layer.initial_state(x) for layer in layers]
    run = Streamer(lambda x: (x,), layers, lambda x: (x.sum(),), [], Plan("sequence", 4, 1, graphs=True))
    run([(x,)], states)
    layers.to(kind)
    with pytest.raises(ValueError, match=r"were cpu torch.float64 when .* are (cpu torch.float32|meta torch.float64)"):
        run([(x,)], states)


class OnGpu(torch.nn.Parameter):
    is_cuda = True


def test_persistent_sums_allocate_once(monkeypatch):
    """Each extra allocation cost half a GiB in a step of the 2.7B model."""
    made, zeros = [], gradients._zeros
    monkeypatch.setattr(gradients, "_zeros", lambda parameter: made.append(parameter.shape) or zeros(parameter))
    sums = PersistentSums([OnGpu(torch.ones(3))])
    for _ in range(2):
        with sums:
            pass
    assert made == [(3,)]


def test_a_sum_that_no_operation_has_added_to_is_none():
    """An operation may add to `main_grad` itself and give autograd None: the sum's version tells."""
    used, unused = OnGpu(torch.ones(3)), OnGpu(torch.ones(3))
    with gradients.GradientSums([used, unused]) as sums:
        torch._foreach_add_([used.main_grad], [torch.ones(3)])
        assert torch.equal(sums.take(used), torch.ones(3))
        assert sums.take(unused) is None
    assert not hasattr(unused, "main_grad")

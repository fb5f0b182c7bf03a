"""How often each layer runs on each chunk, and what is kept for backward."""

import gc
import weakref

import pytest
import torch
from torch import nn

from ma2mba.magc import Plan, Streamer, checkpoint
from tests.parity.recurrent_layers import Counted, gru_layers, run_plainly

TOKENS, LAYERS, WIDTH = 12, 6, 16


def counted_run(plan: Plan) -> list[int]:
    torch.manual_seed(0)
    layers = nn.ModuleList(Counted(layer) for layer in gru_layers(LAYERS))
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.double, requires_grad=True)
    checkpoint(layers, x, None, plan)[0].sum().backward()
    runs = [count for layer in layers for count in layer.runs.values()]
    assert len(runs) == LAYERS * -(-TOKENS // plan.chunk_tokens)
    return runs


@pytest.mark.parametrize("group_layers", [1, 2, 4, 6])
@pytest.mark.parametrize("chunk_tokens", [1, 5, 12])
def test_layer_nesting_runs_each_cell_twice(chunk_tokens, group_layers):
    assert set(counted_run(Plan("layer", chunk_tokens, group_layers))) == {2}


@pytest.mark.parametrize(("group_layers", "thrice"), [(1, 5), (2, 4), (4, 4)])
def test_sequence_nesting_runs_a_cell_at_most_three_times_and_twice_in_the_last_group_and_chunk(group_layers, thrice):
    runs = counted_run(Plan("sequence", 5, group_layers))
    chunks = 3
    assert sorted(runs) == [2] * ((LAYERS - thrice) * (chunks - 1) + LAYERS) + [3] * thrice * (chunks - 1)


def test_one_group_runs_twice_and_once_in_the_last_chunk():
    assert sorted(counted_run(Plan("sequence", 5, LAYERS))) == [1] * LAYERS + [2] * LAYERS * 2


@pytest.mark.parametrize(("stash_every", "once_more"), [(1, 0), (2, 2), (3, 3), (6, 4), (99, 4)])
def test_states_that_are_not_kept_cost_one_more_forward(stash_every, once_more):
    """Six chunks. In each segment, all chunks but the last run once more.

    The sixth chunk's residual is kept from forward, so in its segment the fifth chunk counts as the last.
    """
    runs = counted_run(Plan("sequence", 2, LAYERS, stash_every=stash_every))
    assert sorted(runs) == [1] * LAYERS + [2] * LAYERS * (5 - once_more) + [3] * LAYERS * once_more


def test_two_forwards_before_a_backward_give_right_gradients():
    """The second forward drops the kept residual of the first, which is then recomputed."""
    torch.manual_seed(0)
    layers, plan = gru_layers(2), Plan("sequence", 5, 2)
    xs = [torch.randn(1, TOKENS, WIDTH, dtype=torch.double) for _ in range(2)]
    run = Streamer(lambda x: (x,), layers, lambda x: (x.sin().sum(),), [], plan)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return run([(part,) for part in x.split(5, 1)], [layer.initial_state(x) for layer in layers])[0]

    together = torch.autograd.grad(loss(xs[0]) + loss(xs[1]), [*layers.parameters()])
    apart = [torch.autograd.grad(loss(x), [*layers.parameters()]) for x in xs]
    for both, one, other in zip(together, *apart, strict=True):
        assert torch.allclose(both, one + other, rtol=1e-12, atol=1e-12)


def test_no_gradients_run_each_cell_once_and_keep_nothing():
    layers = nn.ModuleList(Counted(layer) for layer in gru_layers(LAYERS))
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.double)
    with torch.no_grad():
        y, states = checkpoint(layers, x, None, Plan("sequence", 5, 2))
    assert {count for layer in layers for count in layer.runs.values()} == {1}
    assert not y.requires_grad
    assert not states[0][0].requires_grad


def test_residuals_are_freed_with_the_result():
    layers = gru_layers(2)
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.double, requires_grad=True)
    y, states = checkpoint(layers, x, None, Plan("layer", 4, 1))
    function = weakref.ref(y.grad_fn)
    del y, states
    gc.collect()
    assert function() is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nesting": "both"}, "sequence, layer"),
        ({"stash": "disk"}, "device, host"),
        ({"chunk_tokens": 0}, "chunk_tokens=0 is invalid"),
        ({"group_layers": 1.5}, "group_layers=1.5 is invalid"),
        ({"stash_every": 0}, "stash_every=0 is invalid"),
        ({"memo_chunks": -1}, "memo_chunks=-1 is invalid"),
        ({"memo_chunks": 1, "graphs": True}, "memo_chunks=1 is incompatible with graphs=True"),
    ],
)
def test_an_impossible_plan_is_an_error(values, message):
    with pytest.raises(ValueError, match=message):
        Plan(**values)


def test_wrong_arguments_are_errors():
    layers = gru_layers(2)
    plan = Plan("sequence", 4, 1)
    with pytest.raises(ValueError, match="at least one token"):
        checkpoint(layers, torch.zeros(1, 0, WIDTH), None, plan)
    with pytest.raises(ValueError, match="1 states for 2 layers"):
        checkpoint(layers, torch.zeros(1, 2, WIDTH).double(), [(torch.zeros(1, WIDTH).double(),)], plan)
    with pytest.raises(ValueError, match="at least one"):
        checkpoint([], torch.zeros(1, 2, WIDTH), None, plan)


class Remembering(torch.nn.Module):
    """A layer whose memo is the result of its costly part. `costly` counts the runs of that part."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(WIDTH, dtype=torch.double))
        self.costly = 0

    def forward(self, x, state):
        self.costly += 1
        return x + (x * self.weight).sin(), state

    def remember(self, x, state):
        y, after = self(x, state)
        return y, after, (y - x).detach()

    def recall(self, x, state, memo):
        return x + Known.apply(x * self.weight, memo), state

    def initial_state(self, x):
        return (x.new_zeros(x.shape[0], WIDTH),)


class Known(torch.autograd.Function):
    """Return `value`, which is sin(x), with the gradient of sin(x)."""

    @staticmethod
    def forward(ctx, x, value):
        ctx.save_for_backward(x)
        return value.clone()

    @staticmethod
    def backward(ctx, dy):
        return dy * ctx.saved_tensors[0].cos(), None


@pytest.mark.parametrize(("memo_chunks", "costly"), [(0, 6 + 5), (2, 6 + 3), (99, 6)])
def test_memos_save_work_and_change_no_gradient(memo_chunks, costly):
    """Six chunks; the last one is never recomputed."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(Remembering() for _ in range(2))
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.double, requires_grad=True)
    plain = torch.autograd.grad(run_plainly(layers, x, [layer.initial_state(x) for layer in layers])[0].sum(), x)[0]
    for layer in layers:
        layer.costly = 0
    y, _ = checkpoint(layers, x, None, Plan("sequence", 2, 2, memo_chunks=memo_chunks))
    assert torch.allclose(torch.autograd.grad(y.sum(), x)[0], plain, rtol=1e-12, atol=1e-12)
    assert {layer.costly for layer in layers} == {costly}

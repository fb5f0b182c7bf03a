"""How often a cell (one layer on one chunk) runs, and what is kept for backward."""

import gc
import weakref

import pytest
import torch
from torch import nn

from ma2mba.magc import Plan, checkpoint
from tests.parity.worlds import Counted, gru_layers

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


@pytest.mark.parametrize(("group_layers", "thrice"), [(1, 5), (2, 4), (4, 4), (6, 0)])
def test_sequence_nesting_runs_each_cell_at_most_three_times_and_the_last_group_twice(group_layers, thrice):
    runs = counted_run(Plan("sequence", 5, group_layers))
    chunks = 3
    assert sorted(runs) == [2] * (LAYERS - thrice) * chunks + [3] * thrice * chunks


def test_no_gradients_run_each_cell_once_and_keep_nothing():
    layers = nn.ModuleList(Counted(layer) for layer in gru_layers(LAYERS))
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.double)
    with torch.no_grad():
        y, states = checkpoint(layers, x, None, Plan("sequence", 5, 2))
    assert {count for layer in layers for count in layer.runs.values()} == {1}
    assert not y.requires_grad
    assert not states[0][0].requires_grad


def test_what_is_kept_does_not_outlive_the_result():
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
        ({"chunk_tokens": 0}, "chunk_tokens is 0"),
        ({"group_layers": 1.5}, "group_layers is 1.5"),
    ],
)
def test_an_impossible_plan_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Plan(**values)


def test_wrong_arguments_are_refused():
    layers = gru_layers(2)
    plan = Plan("sequence", 4, 1)
    with pytest.raises(ValueError, match="at least one token"):
        checkpoint(layers, torch.zeros(1, 0, WIDTH), None, plan)
    with pytest.raises(ValueError, match="1 states for 2 layers"):
        checkpoint(layers, torch.zeros(1, 2, WIDTH).double(), [(torch.zeros(1, WIDTH).double(),)], plan)
    with pytest.raises(ValueError, match="at least one"):
        checkpoint([], torch.zeros(1, 2, WIDTH), None, plan)

"""Every plan gives the values and gradients of plain autograd, in fp64.

Worst relative error of all cases (norm of the difference over norm): 5e-15 measured, 1e-10 allowed.
"""

import pytest
import torch
from torch import Tensor

from ma2mba.magc import Plan, checkpoint
from tests.parity.recurrent_layers import gru_layers, mamba_layers, run_plainly

TOKENS, LAYERS, WIDTH = 13, 5, 16
BOUND = 1e-10
MAKERS = {"mamba": mamba_layers, "gru": gru_layers}


def random_states(layers, x: Tensor) -> list[tuple[Tensor, ...]]:
    return [tuple(torch.randn_like(t).requires_grad_() for t in layer.initial_state(x)) for layer in layers]


def weigh(y: Tensor, states) -> Tensor:
    """Return a loss with a different weight for every element of the output and the final states."""
    parts = [y, *(t for state in states for t in state)]
    return sum(
        (part * torch.linspace(-1, 1, part.numel(), dtype=part.dtype).view_as(part).sin()).sum() for part in parts
    )


def outcome(run, layers, x: Tensor, states) -> list[Tensor]:
    y, after = run(layers, x, states)
    inputs = [x, *(t for state in states for t in state), *layers.parameters()]
    return [y, *(t for s in after for t in s), *torch.autograd.grad(weigh(y, after), inputs)]


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm().clamp(min=1e-300)).item()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("group_layers", [1, 2, 5, 9])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 13, 50])
@pytest.mark.parametrize("nesting", ["sequence", "layer"])
@pytest.mark.parametrize("kind", MAKERS)
def test_values_and_gradients_equal_plain_autograd(kind, nesting, chunk_tokens, group_layers, batch):
    torch.manual_seed(0)
    layers = MAKERS[kind](LAYERS)
    x = torch.randn(batch, TOKENS, WIDTH, dtype=torch.double, requires_grad=True)
    states = random_states(layers, x)
    expected = outcome(run_plainly, layers, x, states)
    for stash, every in (("device", 1), ("host", 1), ("device", 3)):
        plan = Plan(nesting, chunk_tokens, group_layers, stash, every)
        got = outcome(lambda layers, x, states, plan=plan: checkpoint(layers, x, states, plan), layers, x, states)
        assert max(relative(a, b) for a, b in zip(got, expected, strict=True)) < BOUND


@pytest.mark.parametrize("nesting", ["sequence", "layer"])
def test_only_the_final_state_may_carry_the_loss(nesting):
    torch.manual_seed(0)
    layers = gru_layers(3)
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.double, requires_grad=True)
    gradients = []
    for run in (run_plainly, lambda layers, x, states: checkpoint(layers, x, states, Plan(nesting, 4, 2))):
        _, after = run(layers, x, [layer.initial_state(x) for layer in layers])
        gradients.append(torch.autograd.grad(after[1][0].square().sum(), [x, *layers[:2].parameters()]))
    assert max(relative(a, b) for a, b in zip(*gradients, strict=True)) < BOUND


@pytest.mark.parametrize("nesting", ["sequence", "layer"])
def test_split_sequence_continues_from_returned_states(nesting):
    """Two calls joined by their states give the gradients of one call: gradients flow through the returned states."""
    torch.manual_seed(0)
    layers, plan = mamba_layers(3), Plan(nesting, 4, 2)
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.double, requires_grad=True)
    whole, _ = checkpoint(layers, x, None, plan)
    first, states = checkpoint(layers, x[:, :6], None, plan)
    second, _ = checkpoint(layers, x[:, 6:], states, plan)
    inputs = [x, *layers.parameters()]
    expected = torch.autograd.grad(weigh(whole, []), inputs)
    got = torch.autograd.grad(weigh(torch.cat([first, second], 1), []), inputs)
    assert max(relative(a, b) for a, b in zip(got, expected, strict=True)) < BOUND


@pytest.mark.parametrize("nesting", ["sequence", "layer"])
def test_frozen_parameters_and_plain_input_get_no_gradient(nesting):
    torch.manual_seed(0)
    layers = gru_layers(3)
    layers[1].requires_grad_(False)
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.double)
    checkpoint(layers, x, None, Plan(nesting, 4, 1))[0].sum().backward()
    assert x.grad is None
    assert all(p.grad is None for p in layers[1].parameters())
    assert all(p.grad is not None for p in layers[0].parameters())


@pytest.mark.parametrize("nesting", ["sequence", "layer"])
def test_dropout_is_the_same_in_recomputation(nesting):
    """Finite differences of forwards with the same seed give the expected slope."""
    torch.manual_seed(0)
    layers = gru_layers(4)
    for layer in layers:
        layer.register_forward_hook(lambda _, __, out: (torch.dropout(out[0], 0.5, True), out[1]))
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.double, requires_grad=True)
    y, _ = checkpoint(layers, x, None, Plan(nesting, 4, 2))
    gradient = torch.autograd.grad(y.sum(), x)[0]
    nudge = torch.randn_like(x)
    eps = 1e-6
    outputs = []
    for sign in (1, -1):
        torch.manual_seed(0)
        gru_layers(4)
        torch.randn(2, TOKENS, WIDTH, dtype=torch.double)
        outputs.append(checkpoint(layers, x + sign * eps * nudge, None, Plan(nesting, 4, 2))[0].sum())
    slope = (outputs[0] - outputs[1]).item() / (2 * eps)
    # Central differences in fp64: 3e-9 relative error measured.
    assert slope == pytest.approx((gradient * nudge).sum().item(), rel=1e-6)


def test_autocast_is_the_same_in_recomputation():
    torch.manual_seed(0)
    layers = gru_layers(2).float()
    x = torch.randn(1, TOKENS, WIDTH, requires_grad=True)
    gradients = []
    for run in (run_plainly, lambda layers, x, states: checkpoint(layers, x, states, Plan("sequence", TOKENS, 1))):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, _ = run(layers, x, [layer.initial_state(x) for layer in layers])
        gradients.append(torch.autograd.grad(y.sum(), x)[0])
    assert torch.equal(*gradients)


def test_an_input_changed_in_place_is_an_error():
    layers = gru_layers(2)
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.double)
    y, _ = checkpoint(layers, x, None, Plan("sequence", 4, 1))
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_partial_gradients_are_summed_in_fp32():
    """Compare bf16 parameters with fp32 parameters over 256 chunks. Sums in bf16 have an error of 1.5e-2 or more."""
    torch.manual_seed(0)
    layers = gru_layers(1).bfloat16()
    reference = gru_layers(1).float()
    reference.load_state_dict({k: v.float() for k, v in layers.state_dict().items()})
    x = torch.randn(1, 256, WIDTH).bfloat16()
    gradients = []
    for stack, data in ((layers, x), (reference, x.float())):
        checkpoint(stack, data, None, Plan("sequence", 1, 1))[0].sum().backward()
        gradients.append([p.grad.float() for p in stack.parameters()])
    apart = [relative(ours, theirs) for ours, theirs in zip(*gradients, strict=True)]
    assert len(apart) == 4
    assert max(apart) < 6e-3  # measured: 3.3e-3

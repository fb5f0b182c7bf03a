"""`check`: compare layers under MA-GC with a plain run, and name what differs."""

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ma2mba.magc.api import Layers, checkpoint
from ma2mba.magc.cell import Piece
from ma2mba.magc.contract import State, initial_states, layer_name
from ma2mba.magc.plan import Plan

TOLERANCE = 1e-6
"""Allowed relative error. A layer that computes in fp32 inside reaches 1e-7; a broken rule gives far more."""
Outcome = dict[str, Tensor | None]


def check(layers: Layers, x: Tensor, plan: Plan) -> None:
    """Compare values and all gradients under MA-GC with a plain run. Raise ValueError that names all differences.

    Computes with copies of the layers in fp64, without dropout; the layers do not change. The plain run takes memory
    for the whole of x, so give a short x of several chunks: x (batch, tokens, width), more than `plan.chunk_tokens`
    tokens.
    """
    if x.dim() != 3 or x.shape[1] <= plan.chunk_tokens:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; give (batch, tokens, width) with more than plan.chunk_tokens="
            f"{plan.chunk_tokens} tokens, so that there are several chunks"
        )
    x = x.detach().double()
    problems = list(_layer_problems(_copies(layers), x, plan.chunk_tokens))
    problems += _gradient_problems(layers, x, plan)
    if problems:
        raise ValueError("\n".join(problems))


def _copies(layers: Layers) -> list[nn.Module]:
    """Return copies of the layers in fp64, without dropout."""
    copies = [*copy.deepcopy(layers)]
    for layer in copies:
        layer._apply(lambda t: t.to(torch.promote_types(t.dtype, torch.double)) if _is_wide(t) else t)
        for module in layer.modules():
            if isinstance(module, _DropoutNd):
                module.eval()
            elif isinstance(module, nn.RNNBase):
                module.dropout = 0.0
    return copies


@torch.no_grad()
def _layer_problems(layers: list[nn.Module], x: Tensor, chunk_tokens: int) -> Iterator[str]:
    """Yield the broken rules of each layer."""
    for number, layer in enumerate(layers):
        name = layer_name(number, layer)
        state = initial_states(layers, x)[number]

        def run(x: Tensor, state: State, piece: Piece = Piece.of_layer(layer, name)) -> tuple[Tensor, State]:
            (y,), (after,) = piece.run((x.clone(),), [tuple(t.clone() for t in state)])
            return y, after

        before = copy.deepcopy(layer.state_dict())
        y, after = run(x, state)
        again, after_again = run(x, state)
        cut, states = _run_cut(run, x, state, chunk_tokens)
        if _apart(_values(y, after), _values(again, after_again)):
            yield (
                f"{name}: two calls with the same x and state differ. The layer keeps something between calls or draws "
                "random numbers. Carry it in the state"
            )
        elif differ := _apart(_values(cut, states[-1]), _values(y, after)):
            yield f"{name}: the result depends on where the sequence is cut: {_where(cut, y)}{', '.join(differ)} differ"
        for key, value in layer.state_dict().items():
            if not torch.equal(value, before[key]):
                yield f"{name}: forward changes {key}. Backward runs a chunk again: call eval(), or use the state"
        if _elements(states[1]) > _elements(states[0]):
            shapes = " and ".join(str([tuple(t.shape) for t in s]) for s in states[:2])
            yield f"{name}: the state grows with the sequence: {shapes} after one chunk and two. Its size must be fixed"
        x = y


def _run_cut(
    run: Callable[[Tensor, State], tuple[Tensor, State]], x: Tensor, state: State, chunk_tokens: int
) -> tuple[Tensor, list[State]]:
    """Return y of a run in chunks, and the state after each chunk."""
    outputs, states = [], []
    for chunk in x.split(chunk_tokens, 1):
        y, state = run(chunk, state)
        outputs.append(y)
        states.append(state)
    return torch.cat(outputs, 1), states


def _gradient_problems(layers: Layers, x: Tensor, plan: Plan) -> Iterator[str]:
    """Yield each value and gradient that differs from the plain run's."""

    def plainly(copies: list[nn.Module], x: Tensor) -> tuple[Tensor, list[State]]:
        after = []
        for layer, state in zip(copies, initial_states(copies, x), strict=True):
            x, state = layer(x, state)
            after.append(state)
        return x, after

    right = _outcome(plainly, _copies(layers), x)
    try:
        found = _outcome(lambda copies, x: checkpoint(copies, x, None, plan), _copies(layers), x)
    except (ValueError, RuntimeError) as error:
        yield str(error)
        return
    for name in _apart(found, right):
        yield f"{name}: MA-GC and a plain run differ{_by(found[name], right[name])}"


def _outcome(
    run: Callable[[list[nn.Module], Tensor], tuple[Tensor, Sequence[State]]], layers: list[nn.Module], x: Tensor
) -> Outcome:
    """Return values and gradients by name. Every element of every result has another weight in the loss."""
    x = x.clone().requires_grad_()
    y, states = run(layers, x)
    named = {
        f"{layer_name(number, layer)}: gradient of {name}": parameter
        for number, layer in enumerate(layers)
        for name, parameter in layer.named_parameters()
        if parameter.requires_grad
    }
    found: Outcome = {"y": y, "gradient of x": None}
    for number, state in enumerate(states):
        found |= {f"{layer_name(number, layers[number])}: final state {i}": t for i, t in enumerate(state)}
    wanted = {"gradient of x": x, **named}
    loss = torch.stack([_weighed(t) for t in found.values() if t is not None and t.requires_grad]).sum()
    gradients = torch.autograd.grad(loss, [*wanted.values()], allow_unused=True)
    return found | dict(zip(wanted, gradients, strict=True))


def _weighed(tensor: Tensor) -> Tensor:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return (real * torch.linspace(0, 9, real.numel(), dtype=real.dtype, device=real.device).view_as(real).sin()).sum()


def _values(y: Tensor, state: State) -> Outcome:
    return {"y": y, **{f"final state {i}": t for i, t in enumerate(state)}}


def _apart(found: Outcome, right: Outcome) -> list[str]:
    """Return the names of what differs."""
    return [name for name in right if not _equal(found[name], right[name])]


def _equal(found: Tensor | None, right: Tensor | None) -> bool:
    if found is None or right is None:
        return found is right
    if found.shape != right.shape:
        return False
    return bool((found - right).abs().double().norm() <= TOLERANCE * right.abs().double().norm() + 1e-300)


def _by(found: Tensor | None, right: Tensor | None) -> str:
    """Return by how much two tensors differ, in words."""
    if found is None or right is None:
        return f": {'none' if found is None else 'one'} instead of {'none' if right is None else 'one'}"
    if found.shape != right.shape:
        return f": shape {tuple(found.shape)} instead of {tuple(right.shape)}"
    return f" by {((found - right).abs().norm() / right.abs().norm().clamp(min=1e-300)).item():.2g} of its norm"


def _where(cut: Tensor, y: Tensor) -> str:
    """Return the first token at which two outputs differ, in words."""
    apart = (cut - y).abs().amax(dim=(0, 2)) > TOLERANCE * y.abs().max()
    return f"from token {int(apart.int().argmax())} on " if apart.any() else ""


def _elements(state: State) -> int:
    return sum(t.numel() for t in state)


def _is_wide(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()

"""The engine as one autograd function: each parameter's gradient reaches autograd once, whatever the number of chunks.

That is what ZeRO needs (it sees each parameter ready once), and why the parameters are inputs of the function.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ma2mba.magc.cell import Cell, Piece, Sink, State, Step, Values
from ma2mba.magc.ends import Ends, Summed, Tokens
from ma2mba.magc.layers import Chain
from ma2mba.magc.plan import Plan
from ma2mba.magc.scan import Scan

T = TypeVar("T")
Layers = Sequence[nn.Module] | nn.ModuleList


def checkpoint(layers: Layers, x: Tensor, states: Sequence[State] | None, plan: Plan) -> tuple[Tensor, list[State]]:
    """Run `layers` over x with multi-axis gradient checkpointing; the same values and gradients as a plain run.

    layers  modules with `layer(x, state) -> (x, state)`, a state a tuple of tensors, and `layer.initial_state(x)`.
    x       (batch, tokens, width), at least one token.
    states  one per layer, or None for `layer.initial_state(x)` of each.
    Returns y (batch, tokens, width) and the final states. Gradients flow from both to x, the parameters and the initial
    states. A layer must not keep anything between calls. Raises ValueError for wrong shapes or counts.
    """
    if x.dim() != 3 or x.shape[1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (batch, tokens, width) with at least one token")
    if states is None:
        states = [layer.initial_state(x) for layer in layers]  # type: ignore[operator]
    groups = _groups(layers, states, plan)
    return _run(groups, Tokens(x.shape[1], plan.chunk_tokens), x, states, plan)


def stream(
    front: Callable[..., Values],
    layers: Layers,
    head: Callable[..., Values],
    modules: Iterable[nn.Module],
    chunks: Sequence[Values],
    states: Sequence[State],
    plan: Plan,
) -> tuple[Tensor, list[State]]:
    """Sum over chunks of `head(*layers(*front(*chunk)))`; with sequence nesting nothing as long as the sequence exists.

    front    chunk -> (x, ...): what the layers carry (batch, tokens, width), and what the head needs besides.
    head     (x, ...) -> (a scalar,): this chunk's part of the loss.
    modules  those that own the parameters which front and head use.
    chunks   one tuple of tensors per chunk, made on demand or a list; `plan.chunk_tokens` is left to whoever cuts them.
    Returns the sum and the final states; gradients reach parameters and initial states, not the chunks.
    """
    if not len(chunks):
        raise ValueError("there are no chunks; give at least one")
    modules = tuple(modules)
    groups = _groups(layers, states, plan)
    groups[0].insert(0, Piece.of_function(front, modules))
    groups[-1].append(Piece.of_function(head, modules))
    return _run(groups, Summed(chunks), None, states, plan)


def _groups(layers: Layers, states: Sequence[State], plan: Plan) -> list[list[Piece]]:
    if not len(layers):
        raise ValueError("there are no layers; give at least one")
    if len(states) != len(layers):
        raise ValueError(
            f"there are {len(states)} states for {len(layers)} layers; give one tuple of tensors per layer"
        )
    pieces = [Piece.of_layer(layer) for layer in layers]
    return [pieces[start : start + plan.group_layers] for start in range(0, len(pieces), plan.group_layers)]


def _run(
    groups: Sequence[Sequence[Piece]], ends: Ends, x: Tensor | None, states: Sequence[State], plan: Plan
) -> tuple[Tensor, list[State]]:
    cells = [Cell(group) for group in groups]
    root: Step
    if plan.nesting == "sequence":
        root = Scan(Chain(cells), plan.stash)
    else:
        root = Chain([Scan(cell, plan.stash) for cell in cells])
    if not torch.is_grad_enabled():
        outputs, after, _ = root.forward(ends.cut(x), states, keep=False)
        return ends.join(outputs), after
    parameters = tuple(dict.fromkeys(p for cell in cells for p in cell.parameters))
    sizes = [len(state) for state in states]
    flat = [t for state in states for t in state]
    y, *flat_after = _MultiAxis.apply(root, ends, sizes, parameters, x, *flat, *parameters)
    return y, _unflatten(flat_after, sizes)


class _MultiAxis(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, root: Step, ends: Ends, sizes: list[int], parameters: tuple[nn.Parameter, ...], x: Any, *flat: Tensor
    ) -> tuple[Tensor, ...]:
        states = flat[: sum(sizes)]
        outputs, after, ctx.residual = root.forward(ends.cut(x), _unflatten(states, sizes), keep=True)
        ctx.root, ctx.ends, ctx.sizes, ctx.parameters = root, ends, sizes, parameters
        # Saved only so that torch refuses a second backward, and one after x or a state was changed in place.
        ctx.save_for_backward(x, *states)
        ctx.set_materialize_grads(False)
        return ends.join(outputs), *(t for state in after for t in state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor | None, *d_after: Tensor | None) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        residual, ctx.residual = ctx.residual, None
        sink = Sink()
        d_chunks, d_states = ctx.root.backward(residual, ctx.ends.spread(d_y), _unflatten(d_after, ctx.sizes), sink)
        d_x = ctx.ends.collect(d_chunks) if ctx.needs_input_grad[4] else None
        flat = [t for state in d_states for t in state]
        return None, None, None, None, d_x, *flat, *(sink.take(p) for p in ctx.parameters)


def _unflatten(flat: Sequence[T], sizes: Sequence[int]) -> list[tuple[T, ...]]:
    taken = iter(flat)
    return [tuple(next(taken) for _ in range(size)) for size in sizes]

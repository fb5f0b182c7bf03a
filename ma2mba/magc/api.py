"""The engine as one autograd function: each parameter's gradient reaches autograd once, whatever the number of chunks.

That is what ZeRO needs (it sees each parameter ready once), and why the parameters are inputs of the function.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ma2mba.magc.cell import Cell, GraphCell, Piece, State, Step, Values
from ma2mba.magc.chain import Chain
from ma2mba.magc.chunk_io import ChunkIO, Summed, Tokens
from ma2mba.magc.gradients import GradientSums, PersistentSums
from ma2mba.magc.graphs import CapturedCell
from ma2mba.magc.plan import Plan
from ma2mba.magc.scan import Scan

T = TypeVar("T")
Layers = Sequence[nn.Module] | nn.ModuleList


def checkpoint(layers: Layers, x: Tensor, states: Sequence[State] | None, plan: Plan) -> tuple[Tensor, list[State]]:
    """Run `layers` over x with multi-axis gradient checkpointing; the same values and gradients as a plain run.

    layers  modules with `layer(x, state) -> (x, state)`, a state a tuple of tensors, and `layer.initial_state(x)`. They
            may offer `layer.remember(x, state) -> (x, state, memo)` and `layer.recall(x, state, memo) -> (x, state)`:
            the same values and gradients, the second with less work (`Plan.memo_chunks`).
    x       (batch, tokens, width), at least one token.
    states  one per layer, or None for `layer.initial_state(x)` of each.
    Returns y (batch, tokens, width) and the final states. Gradients flow from both to x, the parameters and the initial
    states. A layer must not keep anything between calls. Raises ValueError for wrong shapes or counts.
    """
    if x.dim() != 3 or x.shape[1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (batch, tokens, width) with at least one token")
    plan = replace(plan, graphs=False)
    root, parameters = _root(_groups(layers, plan), plan)
    if states is None:
        states = [layer.initial_state(x) for layer in layers]  # type: ignore[operator]
    _check_states(states, root)
    return _run(root, parameters, Tokens(x.shape[1], plan.chunk_tokens), x, states)


def stream(
    front: Callable[..., Values],
    layers: Layers,
    head: Callable[..., Values],
    modules: Iterable[nn.Module],
    chunks: Sequence[Values],
    states: Sequence[State],
    plan: Plan,
) -> tuple[Tensor, list[State]]:
    """`Streamer` for one call."""
    return Streamer(front, layers, head, modules, plan)(chunks, states)


class Streamer:
    """Sums `head(*layers(*front(*chunk)))` over chunks; with sequence nesting nothing as long as the sequence exists.

    front    chunk -> (x, ...): what the layers carry (batch, tokens, width), and what the head needs besides.
    head     (x, ...) -> (a scalar,): this chunk's part of the loss.
    modules  those that own the parameters which front and head use. What is frozen must be so already.
    With graphs the layers must be on their device, in their dtype, already.
    Raises ValueError for no layers, and for a plan with graphs that has several groups of layers.
    """

    def __init__(
        self,
        front: Callable[..., Values],
        layers: Layers,
        head: Callable[..., Values],
        modules: Iterable[nn.Module],
        plan: Plan,
    ):
        graphed = plan.graphs and len(layers) > 0 and next(layers[0].parameters()).is_cuda
        groups = _groups(layers, replace(plan, graphs=graphed))
        modules = tuple(modules)
        ends = Piece.of_function(front, modules), Piece.of_function(head, modules)
        self.plan = plan
        self._sink: GradientSums | None = None
        self._first = layers[0]
        self._made_for = _kind(self._first)
        if graphed:
            self._root, self._parameters = _graphed_root(ends, groups, plan)
            self._sink = PersistentSums(self._parameters)
        else:
            groups[0].insert(0, ends[0])
            groups[-1].append(ends[1])
            self._root, self._parameters = _root(groups, plan)

    def __call__(
        self, chunks: Sequence[Values], states: Sequence[State], when_done: Callable[[], None] | None = None
    ) -> tuple[Tensor, list[State]]:
        """The sum, and the states after the last chunk; gradients reach parameters and initial states.

        chunks   one tuple of tensors per chunk, a list or made on demand (once in forward, once in backward); cut by
                 the caller, all but the last of `plan.chunk_tokens` tokens where graphs are used.
        states   one tuple of tensors per layer.
        when_done  called in backward when all is computed, before any gradient is handed over; it may raise.
        Raises ValueError for no chunks, for states that do not match, and where graphs lack what they were made for.
        """
        if not len(chunks):
            raise ValueError("there are no chunks; give at least one")
        if self.plan.graphs and (now := _kind(self._first)) != self._made_for:
            before = self._made_for
            raise ValueError(f"the layers were {before} when the Streamer was made and are {now}; move them before it")
        _check_states(states, self._root)
        return _run(self._root, self._parameters, Summed(chunks, when_done), None, states, self._sink)


def _kind(layer: nn.Module) -> str:
    weight = next(layer.parameters(), None)
    return "" if weight is None else f"{weight.device} {weight.dtype}"


def _groups(layers: Layers, plan: Plan) -> list[list[Piece]]:
    if not len(layers):
        raise ValueError("there are no layers; give at least one")
    if problems := plan.conflicts(len(layers)):
        raise ValueError("; ".join(map(str, problems)))
    pieces = [Piece.of_layer(layer) for layer in layers]
    return [pieces[start : start + plan.group_layers] for start in range(0, len(pieces), plan.group_layers)]


def _check_states(states: Sequence[State], root: Step) -> None:
    if len(states) != root.depth:
        raise ValueError(f"there are {len(states)} states for {root.depth} layers; give one tuple of tensors per layer")


def _root(groups: Sequence[Sequence[Piece]], plan: Plan) -> tuple[Step, tuple[nn.Parameter, ...]]:
    cells = [Cell(group) for group in groups]
    if plan.nesting == "sequence":
        step: Step = GraphCell(cells[0]) if len(cells) == 1 else Chain(cells)
        return Scan(step, plan.stash, plan.stash_every, plan.memo_chunks), _parameters(cells)
    return Chain([Scan(cell, plan.stash, plan.stash_every) for cell in cells]), _parameters(cells)


def _graphed_root(
    ends: tuple[Piece, Piece], groups: Sequence[Sequence[Piece]], plan: Plan
) -> tuple[Step, tuple[nn.Parameter, ...]]:
    front, layers, head = Cell([ends[0]]), Cell(groups[0]), Cell([ends[1]])
    steps: list[Step] = [GraphCell(front), CapturedCell(layers, plan.chunk_tokens), GraphCell(head)]
    return Scan(Chain(steps), plan.stash, plan.stash_every), _parameters([front, layers, head])


def _parameters(cells: Iterable[Cell]) -> tuple[nn.Parameter, ...]:
    return tuple(dict.fromkeys(p for cell in cells for p in cell.parameters))


def _run(
    root: Step,
    parameters: tuple[nn.Parameter, ...],
    ends: ChunkIO,
    x: Tensor | None,
    states: Sequence[State],
    sink: GradientSums | None = None,
) -> tuple[Tensor, list[State]]:
    if not torch.is_grad_enabled():
        outputs, after, _ = root.forward(ends.cut(x), states, keep=False)
        return ends.join(outputs), after
    sizes = [len(state) for state in states]
    flat = [t for state in states for t in state]
    y, *flat_after = _MultiAxis.apply(root, ends, sizes, sink, parameters, x, *flat, *parameters)
    return y, _unflatten(flat_after, sizes)


class _MultiAxis(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        root: Step,
        ends: ChunkIO,
        sizes: list[int],
        sink: GradientSums | None,
        parameters: tuple[nn.Parameter, ...],
        x: Any,
        *flat: Tensor,
    ) -> tuple[Tensor, ...]:
        states = flat[: sum(sizes)]
        outputs, after, ctx.residual = root.forward(ends.cut(x), _unflatten(states, sizes), keep=True)
        ctx.root, ctx.ends, ctx.sizes, ctx.sink, ctx.parameters = root, ends, sizes, sink, parameters
        # Saved only so that torch refuses a second backward, and one after x or a state was changed in place.
        ctx.save_for_backward(x, *states)
        ctx.set_materialize_grads(False)
        return ends.join(outputs), *(t for state in after for t in state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor | None, *d_after: Tensor | None) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        residual, ctx.residual = ctx.residual, None
        with ctx.sink or GradientSums(ctx.parameters) as sink:
            d_after_states = _unflatten(d_after, ctx.sizes)
            d_chunks, d_states = ctx.root.backward(residual, ctx.ends.spread(d_y), d_after_states, sink)
            d_x = ctx.ends.collect(d_chunks) if ctx.needs_input_grad[5] else None
            flat = [t for state in d_states for t in state]
            ctx.ends.done()
            return None, None, None, None, None, d_x, *flat, *[sink.take(p) for p in ctx.parameters]


def _unflatten(flat: Sequence[T], sizes: Sequence[int]) -> list[tuple[T, ...]]:
    taken = iter(flat)
    return [tuple(next(taken) for _ in range(size)) for size in sizes]

"""The public functions: the whole engine as one autograd function.

`nesting="sequence"` builds `Scan(GraphCell)` for one group of layers and `Scan(Chain([Cell, Cell, ...]))` for several.
`nesting="layer"` builds `Chain([Scan(Cell), Scan(Cell), ...])`, the order of the paper (arXiv 2411.19460).

The parameters are inputs of the autograd function, so autograd gets the gradient of each parameter once, however many
chunks there are. ZeRO needs this: it reduces a gradient as soon as autograd hands it over.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
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
    """Run `layers` over x with multi-axis gradient checkpointing. Values and gradients equal a plain run's.

    layers  Modules with `layer(x, state) -> (x, state)`, where a state is a tuple of tensors, and
            `layer.initial_state(x) -> state`. A layer must not keep anything between calls.
            Optional, for `Plan.memo_chunks`: `layer.remember(x, state) -> (x, state, memo)` and
            `layer.recall(x, state, memo) -> (x, state)`. Both return what `layer(x, state)` returns; `recall` uses the
            memo to do less work.
    x       (batch, tokens, width), at least one token.
    states  One state per layer; None: `layer.initial_state(x)`.
    plan    How to checkpoint. `graphs` is ignored here; CUDA graphs need a `Streamer`.
    Returns y (batch, tokens, width) and the final states. Gradients flow from both to x, the parameters and the initial
    states. Raises ValueError for a wrong shape, a wrong number of states, or a plan that the layers do not allow.
    """
    if x.dim() != 3 or x.shape[1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (batch, tokens, width) with at least one token")
    plan = replace(plan, graphs=False)
    _check_layers(layers, plan)
    cells = _cells([Piece.of_layer(layer) for layer in layers], plan)
    if states is None:
        states = [layer.initial_state(x) for layer in layers]  # type: ignore[operator]
    root = _nest(cells, plan)
    _check_states(states, root)
    return _apply(_Run(root, _parameters(cells), Tokens(x.shape[1], plan.chunk_tokens)), x, states)


def stream(
    front: Callable[..., Values],
    layers: Layers,
    head: Callable[..., Values],
    modules: Iterable[nn.Module],
    chunks: Sequence[Values],
    states: Sequence[State],
    plan: Plan,
) -> tuple[Tensor, list[State]]:
    """Build a `Streamer` and call it once."""
    return Streamer(front, layers, head, modules, plan)(chunks, states)


class Streamer:
    """Sums `head(*layers(*front(*chunk)))` over the chunks of a sequence, with multi-axis gradient checkpointing.

    With sequence nesting no tensor on the device is as long as the sequence.

    front    chunk -> (x, ...): x (batch, tokens, width) flows through the layers; the rest goes to the head.
    layers   As for `checkpoint`. With graphs they must already have their final device and dtype.
    head     (x, ...) -> (scalar,): the loss of this chunk.
    modules  Modules that own the parameters of front and head. Freeze parameters before, not after.
    plan     How to checkpoint. `graphs` takes effect only on a GPU.
    Raises ValueError if there are no layers, or for a plan that the layers do not allow.
    """

    def __init__(
        self,
        front: Callable[..., Values],
        layers: Layers,
        head: Callable[..., Values],
        modules: Iterable[nn.Module],
        plan: Plan,
    ):
        modules = tuple(modules)
        front_piece, head_piece = Piece.of_function(front, modules), Piece.of_function(head, modules)
        pieces = [Piece.of_layer(layer) for layer in layers]
        captures = plan.graphs and any(p.is_cuda for layer in layers for p in layer.parameters())
        _check_layers(layers, replace(plan, graphs=captures))
        self.plan = plan
        self._first = layers[0]
        self._first_kind = _kind(self._first)
        self._sums: GradientSums | None = None
        if captures:
            cells = [Cell([front_piece]), Cell(pieces), Cell([head_piece])]
            self._root, self._parameters = _nest_captured(cells, plan), _parameters(cells)
            self._sums = PersistentSums(self._parameters)
        else:
            cells = _cells(pieces, plan, front_piece, head_piece)
            self._root, self._parameters = _nest(cells, plan), _parameters(cells)

    def __call__(
        self, chunks: Sequence[Values], states: Sequence[State], when_done: Callable[[], None] | None = None
    ) -> tuple[Tensor, list[State]]:
        """Return the sum over the chunks and the final states. Gradients flow to parameters and initial states.

        chunks     One tuple of tensors per chunk. The sequence may build a chunk when it is asked for: once in forward
                   and once in backward. The caller cuts the chunks; with graphs all but the last must have
                   `plan.chunk_tokens` tokens.
        states     One tuple of tensors per layer.
        when_done  Called in backward when all gradients are computed, before autograd gets the first of them. It may
                   raise.
        Raises ValueError if there are no chunks, if the number of states is wrong, or, with graphs, if the layers have
        moved to another device or dtype since `__init__`.
        """
        if not len(chunks):
            raise ValueError("there are no chunks; give at least one")
        if self.plan.graphs and (kind := _kind(self._first)) != self._first_kind:
            raise ValueError(
                f"the layers were {self._first_kind} when the Streamer was made and are {kind}; "
                "move the layers before you make the Streamer"
            )
        _check_states(states, self._root)
        run = _Run(self._root, self._parameters, Summed(chunks, when_done), self._sums)
        return _apply(run, None, states)


def _kind(layer: nn.Module) -> str:
    """Return device and dtype of a layer's weights in words; "" for a layer without weights."""
    weight = next(layer.parameters(), None)
    return "" if weight is None else f"{weight.device} {weight.dtype}"


def _check_layers(layers: Layers, plan: Plan) -> None:
    if not len(layers):
        raise ValueError("there are no layers; give at least one")
    if problems := plan.conflicts(len(layers)):
        raise ValueError("; ".join(map(str, problems)))


def _check_states(states: Sequence[State], root: Step) -> None:
    if len(states) != root.depth:
        raise ValueError(f"there are {len(states)} states for {root.depth} layers; give one tuple of tensors per layer")


def _cells(pieces: Sequence[Piece], plan: Plan, front: Piece | None = None, head: Piece | None = None) -> list[Cell]:
    """Cut the layers into groups, one cell each. The front joins the first cell, the head joins the last cell."""
    starts = range(0, len(pieces), plan.group_layers)
    groups = [list(pieces[start : start + plan.group_layers]) for start in starts]
    if front:
        groups[0].insert(0, front)
    if head:
        groups[-1].append(head)
    return [Cell(group) for group in groups]


def _nest(cells: Sequence[Cell], plan: Plan) -> Step:
    """Nest the two axes in the plan's order."""
    if plan.nesting == "layer":
        return Chain([Scan(cell, plan.stash, plan.stash_every) for cell in cells])
    step: Step = GraphCell(cells[0]) if len(cells) == 1 else Chain(cells)
    return Scan(step, plan.stash, plan.stash_every, plan.memo_chunks)


def _nest_captured(cells: Sequence[Cell], plan: Plan) -> Step:
    """Nest the cells of front, layers and head in "sequence" order, with the layers captured as CUDA graphs."""
    front, layers, head = cells
    steps: list[Step] = [GraphCell(front), CapturedCell(layers, plan.chunk_tokens), GraphCell(head)]
    return Scan(Chain(steps), plan.stash, plan.stash_every)


def _parameters(cells: Iterable[Cell]) -> tuple[nn.Parameter, ...]:
    return tuple(dict.fromkeys(p for cell in cells for p in cell.parameters))


@dataclass(frozen=True)
class _Run:
    """All that one run of the engine needs besides tensors. `sums` None: make new sums for this backward."""

    root: Step
    parameters: tuple[nn.Parameter, ...]
    chunk_io: ChunkIO
    sums: GradientSums | None = None


def _apply(run: _Run, x: Tensor | None, states: Sequence[State]) -> tuple[Tensor, list[State]]:
    """Return the joined outputs and the final states, with a graph if gradients are enabled."""
    if not torch.is_grad_enabled():
        outputs, final, _ = run.root.forward(run.chunk_io.cut(x), states, keep=False)
        return run.chunk_io.join(outputs), final
    sizes = [len(state) for state in states]
    flat = [t for state in states for t in state]
    y, *flat_final = _MultiAxis.apply(run, sizes, x, *flat, *run.parameters)
    return y, _unflatten(flat_final, sizes)


class _MultiAxis(torch.autograd.Function):
    """apply(run, sizes, x, *states, *parameters) -> y, *final states. `sizes` counts the tensors of each state."""

    @staticmethod
    def forward(ctx: Any, run: _Run, sizes: list[int], x: Any, *flat: Tensor) -> tuple[Tensor, ...]:
        states = flat[: sum(sizes)]
        outputs, final, ctx.residual = run.root.forward(run.chunk_io.cut(x), _unflatten(states, sizes), keep=True)
        ctx.run, ctx.sizes = run, sizes
        # Saved only so that torch raises an error for a second backward, and if x or a state was changed in place.
        ctx.save_for_backward(x, *states)
        ctx.set_materialize_grads(False)
        return run.chunk_io.join(outputs), *(t for state in final for t in state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor | None, *d_final: Tensor | None) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        run, residual, ctx.residual = ctx.run, ctx.residual, None
        _, _, x_needs_gradient, *_ = ctx.needs_input_grad
        with run.sums or GradientSums(run.parameters) as sums:
            d_outputs, d_final_states = run.chunk_io.spread(d_y), _unflatten(d_final, ctx.sizes)
            d_chunks, d_states = run.root.backward(residual, d_outputs, d_final_states, sums)
            d_x = run.chunk_io.collect(d_chunks) if x_needs_gradient else None
            run.chunk_io.done()
            return None, None, d_x, *(t for state in d_states for t in state), *map(sums.take, run.parameters)


def _unflatten(flat: Sequence[T], sizes: Sequence[int]) -> list[tuple[T, ...]]:
    """Cut a flat sequence into tuples of the given sizes."""
    taken = iter(flat)
    return [tuple(next(taken) for _ in range(size)) for size in sizes]

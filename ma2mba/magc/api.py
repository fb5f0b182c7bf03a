"""The public functions, and how they nest the steps of the engine.

`nesting="sequence"` builds `Scan(GraphCell)` for one group of layers and `Scan(Chain([Cell, Cell, ...]))` for several.
`nesting="layer"` builds `Chain([Scan(Cell), Scan(Cell), ...])`, the order of the paper (arXiv 2411.19460).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ma2mba.magc.cell import Cell, GraphCell, Piece, State, Step, Values
from ma2mba.magc.chain import Chain
from ma2mba.magc.chunk_io import Summed, Tokens
from ma2mba.magc.context import ForwardContext, uncompiled
from ma2mba.magc.contract import check_loss, check_state, check_values, initial_states, layer_name
from ma2mba.magc.gradients import GradientSums, PersistentSums
from ma2mba.magc.graphs import CapturedCell
from ma2mba.magc.plan import Plan
from ma2mba.magc.run import Run, apply, weights_of
from ma2mba.magc.scan import Scan

Layers = Sequence[nn.Module] | nn.ModuleList


@uncompiled
def checkpoint(
    layers: Layers, x: Tensor, states: Sequence[State] | None, plan: Plan, *, zeros_for_unused: bool = False
) -> tuple[Tensor, list[State]]:
    """Run `layers` over x with multi-axis gradient checkpointing. Values and gradients equal a plain run's.

    layers  Modules with `layer(x, state) -> (x, state)`, where a state is a tuple of tensors, and
            `layer.initial_state(x) -> state`. A layer must not keep anything between calls.
            Optional, for `Plan.memo_chunks`: `layer.remember(x, state) -> (x, state, memo)` and
            `layer.recall(x, state, memo) -> (x, state)`. Both return what `layer(x, state)` returns; `recall` uses the
            memo to do less work.
    x       (batch, tokens, width), at least one token.
    states  One state per layer; None: `layer.initial_state(x)`.
    plan    How to checkpoint. `graphs` is ignored here; CUDA graphs need a `Streamer`.
    zeros_for_unused  The gradient of a parameter that no output depends on. False: None, as in plain PyTorch.
            True: zeros, for ZeRO and DDP, where every rank must reduce the same gradients (AdamW decays such a
            parameter).
    Returns y (batch, tokens, width) and the final states. Gradients flow from both to x, the parameters and the initial
    states. Raises ValueError for a wrong shape, a wrong number of states, a plan that the layers do not allow, or a
    layer that breaks a rule of docs/engine.md; backward raises RuntimeError if a weight changed since forward.
    """
    if x.dim() != 3 or x.shape[1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (batch, tokens, width) with at least one token")
    plan = replace(plan, graphs=False)
    _check_layers(layers, plan)
    cells = _cells(_pieces(layers), plan)
    if states is None:
        states = initial_states(layers, x)
    _check_states(states, layers)
    tokens = Tokens(x.shape[1], plan.chunk_tokens)
    return apply(Run(_nest(cells, plan), cells, weights_of(cells), tokens, zeros_for_unused), x, states)


def stream(
    front: Callable[..., Values],
    layers: Layers,
    head: Callable[..., Values],
    modules: Iterable[nn.Module],
    chunks: Sequence[Values],
    states: Sequence[State] | None,
    plan: Plan,
    *,
    zeros_for_unused: bool = False,
) -> tuple[Tensor, list[State]]:
    """Build a `Streamer` and call it once."""
    return Streamer(front, layers, head, modules, plan, zeros_for_unused=zeros_for_unused)(chunks, states)


class Streamer:
    """Sums `head(*layers(*front(*chunk)))` over the chunks of a sequence, with multi-axis gradient checkpointing.

    With sequence nesting no tensor on the device is as long as the sequence.

    front    chunk -> (x, ...): x (batch, tokens, width) flows through the layers; the rest goes to the head.
    layers   As for `checkpoint`. With graphs they must already have their final device and dtype.
    head     (x, ...) -> (scalar,): the loss of this chunk.
    modules  Modules that own the parameters of front and head. With graphs, freeze parameters before, not after.
    plan     How to checkpoint. `graphs` takes effect only on a GPU.
    zeros_for_unused  As for `checkpoint`. With graphs the gradient is always zeros.
    Raises ValueError if there are no layers, or for a plan that the layers do not allow.
    """

    def __init__(
        self,
        front: Callable[..., Values],
        layers: Layers,
        head: Callable[..., Values],
        modules: Iterable[nn.Module],
        plan: Plan,
        *,
        zeros_for_unused: bool = False,
    ):
        modules = tuple(modules)

        def checked_front(*chunk: Tensor) -> Values:
            return check_values("front", front(*chunk), plan.chunk_tokens)

        front_piece = Piece.of_function(checked_front, modules, "front")
        head_piece = Piece.of_function(lambda *values: check_loss(head(*values)), modules, "head")
        captures = plan.graphs and any(p.is_cuda for layer in layers for p in layer.parameters())
        _check_layers(layers, replace(plan, graphs=captures))
        self.plan = plan
        self._front, self._layers = checked_front, layers
        self._first_kind = _kind(layers[0])
        self._zeros_for_unused = zeros_for_unused or captures
        self._captured: tuple[Tensor, ...] | None = None
        self._sums: GradientSums | None = None
        if captures:
            self._cells = [Cell([front_piece]), Cell(_pieces(layers)), Cell([head_piece])]
            self._root, self._captured = _nest_captured(self._cells, plan), weights_of(self._cells).parameters
            self._sums = PersistentSums(self._captured)
        else:
            self._cells = _cells(_pieces(layers), plan, front_piece, head_piece)
            self._root = _nest(self._cells, plan)

    @uncompiled
    def __call__(
        self, chunks: Sequence[Values], states: Sequence[State] | None, when_done: Callable[[], None] | None = None
    ) -> tuple[Tensor, list[State]]:
        """Return the sum over the chunks and the final states. Gradients flow to parameters and initial states.

        chunks     One tuple of tensors per chunk. The sequence may build a chunk when it is asked for: once in forward
                   and once in backward. The caller cuts the chunks: no chunk may have more than `plan.chunk_tokens`
                   tokens, and with graphs all but the last must have exactly so many.
        states     One tuple of tensors per layer. None: `layer.initial_state(x)`, which asks once more for the first
                   chunk, and runs front on it.
        when_done  Called in backward when all gradients are computed, before autograd gets the first of them. It may
                   raise.
        Raises ValueError if there are no chunks, if a chunk is too long, if the number of states is wrong, for the
        errors of `checkpoint`, or, with graphs, if the layers have moved to another device or dtype since `__init__`.
        """
        if not len(chunks):
            raise ValueError("there are no chunks; give at least one")
        if self.plan.graphs and (kind := _kind(self._layers[0])) != self._first_kind:
            raise ValueError(
                f"the layers were {self._first_kind} when the Streamer was made and are {kind}; "
                "move the layers before you make the Streamer"
            )
        if states is None:
            states = initial_states(self._layers, self._first_x(chunks[0]))
        _check_states(states, self._layers)
        weights = weights_of(self._cells)
        if self._captured is not None and not _same(weights.used, self._captured):
            raise ValueError(
                "parameters were replaced, frozen or unfrozen since the Streamer was made, but its CUDA graphs use the "
                "old ones. Make a new Streamer"
            )
        run = Run(self._root, self._cells, weights, Summed(chunks, when_done), self._zeros_for_unused, self._sums)
        return apply(run, None, states)

    def _first_x(self, chunk: Values) -> Tensor:
        """Return what front makes of the first chunk. Random numbers are drawn as if front had not run."""
        with torch.no_grad(), ForwardContext.current().restored():
            return self._front(*chunk)[0]


def _same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def _kind(layer: nn.Module) -> str:
    """Return device and dtype of a layer's weights in words; "" for a layer without weights."""
    weight = next(layer.parameters(), None)
    return "" if weight is None else f"{weight.device} {weight.dtype}"


def _check_layers(layers: Layers, plan: Plan) -> None:
    if not len(layers):
        raise ValueError("there are no layers; give at least one")
    if problems := plan.conflicts(len(layers)):
        raise ValueError("; ".join(map(str, problems)))


def _check_states(states: Sequence[State], layers: Layers) -> None:
    if len(states) != len(layers):
        given = f"there are {len(states)} states for {len(layers)} layers"
        raise ValueError(f"{given}; give one tuple of tensors per layer")
    for number, (state, layer) in enumerate(zip(states, layers, strict=True)):
        check_state(layer_name(number, layer), state, "the given state")


def _pieces(layers: Layers) -> list[Piece]:
    return [Piece.of_layer(layer, layer_name(number, layer)) for number, layer in enumerate(layers)]


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

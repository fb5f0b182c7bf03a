"""The smallest unit of recomputation: a few layers on one chunk.

Every step of the engine, a `Cell` as well as the two combinators (`layers.Chain`, `scan.Scan`), has three methods:

    forward(values, states, keep)                -> values, states, residual (None unless `keep`), without gradients
    residual(values, states)                     -> what backward needs, with as little computation as possible
    backward(residual, d_values, d_states, sink) -> d_values, d_states; parameter gradients go into the sink

`values` is what flows through the layers and `states` holds a tuple of tensors per layer. A gradient may be None.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ma2mba.magc.context import ForwardContext
from ma2mba.magc.gradients import GradientSums
from ma2mba.magc.packing import State

Values = tuple[Tensor, ...]
Gradients = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Piece:
    """A part of a cell: a layer with a state (`depth` 1), or a function of the values alone (`depth` 0)."""

    run: Callable[[Values, Sequence[State]], tuple[Values, list[State]]]
    depth: int
    parameters: tuple[nn.Parameter, ...]
    layer: Any = None

    @staticmethod
    def of_layer(layer: nn.Module) -> "Piece":
        def run(values: Values, states: Sequence[State]) -> tuple[Values, list[State]]:
            x, state = layer(values[0], states[0])
            return (x, *values[1:]), [tuple(state)]

        return Piece(run, 1, _trainable([layer]), layer)

    def remember(self, values: Values, states: Sequence[State]) -> tuple[Values, list[State], Any]:
        """As `run`, and the layer's memo: None if it offers none."""
        if not hasattr(self.layer, "remember"):
            return *self.run(values, states), None
        x, state, memo = self.layer.remember(values[0], states[0])
        return (x, *values[1:]), [tuple(state)], memo

    def recall(self, values: Values, states: Sequence[State], memo: Any) -> tuple[Values, list[State]]:
        if memo is None:
            return self.run(values, states)
        x, state = self.layer.recall(values[0], states[0], memo)
        return (x, *values[1:]), [tuple(state)]

    @staticmethod
    def of_function(function: Callable[..., Values], modules: Iterable[nn.Module]) -> "Piece":
        return Piece(lambda values, states: (function(*values), []), 0, _trainable(modules))


def _trainable(modules: Iterable[nn.Module]) -> tuple[nn.Parameter, ...]:
    return tuple(p for module in modules for p in module.parameters() if p.requires_grad)


@dataclass(frozen=True)
class _Residual:
    values: Values
    states: tuple[State, ...]
    context: ForwardContext


class Cell:
    """Runs its pieces without a graph; backward runs them once more with one."""

    def __init__(self, pieces: Sequence[Piece]):
        self.pieces = tuple(pieces)
        self.depth = sum(piece.depth for piece in pieces)
        self.parameters = tuple(dict.fromkeys(p for piece in pieces for p in piece.parameters))

    def run(self, values: Values, states: Sequence[State]) -> tuple[Values, list[State]]:
        return self.recall(values, states, [None] * len(self.pieces))

    def remember(self, values: Values, states: Sequence[State]) -> tuple[Values, list[State], list[Any]]:
        """As `run`, and each piece's memo."""
        after: list[State] = []
        memos = []
        for piece in self.pieces:
            values, piece_states, memo = piece.remember(values, states[len(after) : len(after) + piece.depth])
            after += piece_states
            memos.append(memo)
        return values, after, memos

    def recall(self, values: Values, states: Sequence[State], memos: Sequence[Any]) -> tuple[Values, list[State]]:
        """As `run`, with less work where a piece has left a memo."""
        after: list[State] = []
        for piece, memo in zip(self.pieces, memos, strict=True):
            values, piece_states = piece.recall(values, states[len(after) : len(after) + piece.depth], memo)
            after += piece_states
        return values, after

    def forward(self, values: Values, states: Sequence[State], keep: bool) -> tuple[Values, list[State], Any]:
        residual = self.residual(values, states) if keep else None
        with torch.no_grad():
            values, after = self.run(values, states)
        return values, after, residual

    def residual(self, values: Values, states: Sequence[State]) -> Any:
        return _Residual(values, tuple(states), ForwardContext.capture())

    def backward(
        self, residual: Any, d_values: Gradients, d_states: Sequence[Gradients], sink: GradientSums
    ) -> tuple[Gradients, list[Gradients]]:
        with residual.context.restored():
            tape = Tape(self, residual.values, residual.states)
        return tape.backward(d_values, d_states, sink)


class Tape:
    """One forward of a cell with a graph: its inputs as leaves, its outputs, and the way back."""

    def __init__(self, cell: Cell, values: Values, states: Sequence[State], memos: Sequence[Any] | None = None):
        self.cell = cell
        self.values = tuple(_leaf(t) for t in values)
        self.states = [tuple(_leaf(t) for t in state) for state in states]
        with torch.enable_grad():
            memos = [None] * len(cell.pieces) if memos is None else memos
            self.values_out, self.states_out = cell.recall(self.values, self.states, memos)

    def outputs(self) -> tuple[Values, list[State]]:
        return tuple(t.detach() for t in self.values_out), [tuple(t.detach() for t in s) for s in self.states_out]

    def backward(
        self, d_values: Gradients, d_states: Sequence[Gradients], sink: GradientSums
    ) -> tuple[Gradients, list[Gradients]]:
        """Gradients of values and states; those of parameters go into the sink."""
        pairs: list[tuple[Tensor, Tensor | None]] = [*zip(self.values_out, d_values, strict=True)]
        for state, d_state in zip(self.states_out, d_states, strict=True):
            pairs += zip(state, d_state, strict=True)
        inputs = [*self.values, *(t for state in self.states for t in state)]
        gradients = _gradients(pairs, [*inputs, *self.cell.parameters])
        for parameter, gradient in zip(self.cell.parameters, gradients[len(inputs) :], strict=True):
            sink.add(parameter, gradient)
        taken = iter(gradients)
        d_values_in = tuple(next(taken) for _ in self.values)
        return d_values_in, [tuple(_compact(next(taken)) for _ in state) for state in self.states]


class GraphCell:
    """A cell that keeps the graph of its one recomputation, so that later steps can use its output.

    A chain of cells recomputes every cell on its own, and once more the cells whose output a later cell needs.
    A chain of graph cells runs forward with graphs, all alive at once, then backward: a chunk runs twice in all.
    """

    def __init__(self, cell: Cell):
        self.cell, self.depth = cell, cell.depth

    def forward(self, values: Values, states: Sequence[State], keep: bool) -> tuple[Values, list[State], Any]:
        if not keep:
            return self.cell.forward(values, states, keep=False)
        tape = Tape(self.cell, values, states)
        return (*tape.outputs(), tape)

    def residual(self, values: Values, states: Sequence[State]) -> Any:
        return Tape(self.cell, values, states)

    def remember(self, values: Values, states: Sequence[State]) -> tuple[Values, list[State], Any]:
        """Forward without a graph, and what makes `recall` cheaper than `residual`."""
        with torch.no_grad():
            return self.cell.remember(values, states)

    def recall(self, values: Values, states: Sequence[State], memo: Any) -> Any:
        return Tape(self.cell, values, states, memo)

    def backward(
        self, residual: Any, d_values: Gradients, d_states: Sequence[Gradients], sink: GradientSums
    ) -> tuple[Gradients, list[Gradients]]:
        return residual.backward(d_values, d_states, sink)


class Step(Protocol):
    """What a `Cell` and the combinators have in common; the module's docstring says what each method does."""

    depth: int

    def forward(self, values: Any, states: Sequence[State], keep: bool) -> tuple[Any, list[State], Any]: ...

    def residual(self, values: Any, states: Sequence[State]) -> Any: ...

    def backward(
        self, residual: Any, d_values: Any, d_states: Sequence[Gradients], sink: GradientSums
    ) -> tuple[Any, list[Gradients]]: ...


def _compact(gradient: Tensor | None) -> Tensor | None:
    """The same, without the rest of a larger tensor that it is a view of: it outlives the chunk."""
    if gradient is None or gradient.untyped_storage().nbytes() <= gradient.nbytes:
        return gradient
    return gradient.clone()


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())


def _gradients(pairs: Sequence[tuple[Tensor, Tensor | None]], inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of the outputs that have one, with respect to all inputs; None where nothing flows."""
    used = [(out, gradient) for out, gradient in pairs if gradient is not None and out.requires_grad]
    wanted = [i for i, tensor in enumerate(inputs) if tensor.requires_grad]
    gradients: list[Tensor | None] = [None] * len(inputs)
    if used and wanted:
        outputs, seeds = zip(*used, strict=True)
        got = torch.autograd.grad(outputs, [inputs[i] for i in wanted], seeds, allow_unused=True)
        for i, gradient in zip(wanted, got, strict=True):
            gradients[i] = gradient
    return gradients

"""The smallest unit of recomputation: a group of layers on one chunk.

The engine is built of steps that nest. A step is a `Cell` (or `GraphCell`, or `graphs.CapturedCell`), a `chain.Chain`
along the layer axis, or a `scan.Scan` along the sequence axis. Every step has three methods:

    forward(values, states, keep)                -> values, states, residual
        Run without an autograd graph. The residual is all that backward needs; None unless `keep`.
    residual(values, states)                     -> residual
        Return the same residual with as little computation as possible.
    backward(residual, d_values, d_states, sums) -> d_values, d_states
        Turn the gradients of the outputs into the gradients of the inputs. Add parameter gradients to `sums`.

`values` is what flows through the layers. `states` holds one state, a tuple of tensors, per layer; backward maps the
gradient of each layer's final state to the gradient of its initial state. A gradient may be None, which means zero.
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


class Step(Protocol):
    """The methods that every step has; the docstring of this module explains them. `depth` counts the states."""

    depth: int

    def forward(self, values: Any, states: Sequence[State], keep: bool) -> tuple[Any, list[State], Any]: ...

    def residual(self, values: Any, states: Sequence[State]) -> Any: ...

    def backward(
        self, residual: Any, d_values: Any, d_states: Sequence[Gradients], sums: GradientSums
    ) -> tuple[Any, list[Gradients]]: ...


@dataclass(frozen=True)
class Piece:
    """One element of a cell: a layer with a state (`depth` 1), or a function of the values alone (`depth` 0)."""

    run: Callable[[Values, Sequence[State]], tuple[Values, list[State]]]
    depth: int
    parameters: tuple[nn.Parameter, ...]
    layer: Any = None

    @staticmethod
    def of_layer(layer: nn.Module) -> "Piece":
        """Return a layer as a piece. The layer changes the first value, x; the other values pass by unchanged."""

        def run(values: Values, states: Sequence[State]) -> tuple[Values, list[State]]:
            x, state = layer(values[0], states[0])
            return (x, *values[1:]), [tuple(state)]

        return Piece(run, 1, _trainable([layer]), layer)

    @staticmethod
    def of_function(function: Callable[..., Values], modules: Iterable[nn.Module]) -> "Piece":
        """Return `function(*values) -> values` as a piece. `modules` own the parameters that the function uses."""
        return Piece(lambda values, states: (function(*values), []), 0, _trainable(modules))

    def remember(self, values: Values, states: Sequence[State]) -> tuple[Values, list[State], Any]:
        """Do what `run` does and return the layer's memo as well; None if the layer has no `remember`."""
        if not hasattr(self.layer, "remember"):
            return *self.run(values, states), None
        x, state, memo = self.layer.remember(values[0], states[0])
        return (x, *values[1:]), [tuple(state)], memo

    def recall(self, values: Values, states: Sequence[State], memo: Any) -> tuple[Values, list[State]]:
        """Do what `run` does, with less work if there is a memo."""
        if memo is None:
            return self.run(values, states)
        x, state = self.layer.recall(values[0], states[0], memo)
        return (x, *values[1:]), [tuple(state)]


class Cell:
    """The plain step: keeps its inputs in forward, and runs its pieces again, with an autograd graph, in backward."""

    def __init__(self, pieces: Sequence[Piece]):
        self.pieces = tuple(pieces)
        self.depth = sum(piece.depth for piece in pieces)
        self.parameters = tuple(dict.fromkeys(p for piece in pieces for p in piece.parameters))

    def run(self, values: Values, states: Sequence[State]) -> tuple[Values, list[State]]:
        """Run the pieces in order. Autograd records a graph if gradients are enabled."""
        return self.recall(values, states, [None] * len(self.pieces))

    def remember(self, values: Values, states: Sequence[State]) -> tuple[Values, list[State], list[Any]]:
        """Do what `run` does and return the memo of each piece as well."""
        final: list[State] = []
        memos = []
        for piece in self.pieces:
            values, piece_states, memo = piece.remember(values, states[len(final) : len(final) + piece.depth])
            final += piece_states
            memos.append(memo)
        return values, final, memos

    def recall(self, values: Values, states: Sequence[State], memos: Sequence[Any]) -> tuple[Values, list[State]]:
        """Do what `run` does, with less work for each piece that has a memo."""
        final: list[State] = []
        for piece, memo in zip(self.pieces, memos, strict=True):
            values, piece_states = piece.recall(values, states[len(final) : len(final) + piece.depth], memo)
            final += piece_states
        return values, final

    def forward(self, values: Values, states: Sequence[State], keep: bool) -> tuple[Values, list[State], Any]:
        residual = self.residual(values, states) if keep else None
        with torch.no_grad():
            values, final = self.run(values, states)
        return values, final, residual

    def residual(self, values: Values, states: Sequence[State]) -> Any:
        return _CellInputs(values, tuple(states), ForwardContext.current())

    def backward(
        self, residual: Any, d_values: Gradients, d_states: Sequence[Gradients], sums: GradientSums
    ) -> tuple[Gradients, list[Gradients]]:
        with residual.context.restored():
            tape = Tape(self, residual.values, residual.states)
        return tape.backward(d_values, d_states, sums)


@dataclass(frozen=True)
class _CellInputs:
    """The residual of a cell: its inputs, and the random numbers and autocast mode of its forward."""

    values: Values
    states: tuple[State, ...]
    context: ForwardContext


class GraphCell:
    """A cell that recomputes early: its residual is the autograd graph of the recomputation (`Tape`), not its inputs.

    The recomputation also gives the outputs, which the next step in a `Chain` needs. A chain of cells therefore runs
    every cell but the last twice in backward: once for its output, once for its graph. A chain of graph cells runs
    each cell once, but all their graphs exist at the same time.
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
        """Run without a graph and return the memos with which `recall` costs less than `residual`."""
        with torch.no_grad():
            return self.cell.remember(values, states)

    def recall(self, values: Values, states: Sequence[State], memos: Any) -> Any:
        """Return what `residual` returns, with less work."""
        return Tape(self.cell, values, states, memos)

    def backward(
        self, residual: Any, d_values: Gradients, d_states: Sequence[Gradients], sums: GradientSums
    ) -> tuple[Gradients, list[Gradients]]:
        return residual.backward(d_values, d_states, sums)


class Tape:
    """One forward of a cell with an autograd graph. The inputs are leaves, so the graph ends at the cell's edge."""

    def __init__(self, cell: Cell, values: Values, states: Sequence[State], memos: Sequence[Any] | None = None):
        self.cell = cell
        self.values = tuple(_leaf(t) for t in values)
        self.states = [tuple(_leaf(t) for t in state) for state in states]
        with torch.enable_grad():
            memos = [None] * len(cell.pieces) if memos is None else memos
            self.values_out, self.states_out = cell.recall(self.values, self.states, memos)

    def outputs(self) -> tuple[Values, list[State]]:
        """Return values and final states without their graph."""
        return tuple(t.detach() for t in self.values_out), [tuple(t.detach() for t in s) for s in self.states_out]

    def backward(
        self, d_values: Gradients, d_states: Sequence[Gradients], sums: GradientSums
    ) -> tuple[Gradients, list[Gradients]]:
        """Return the gradients of the input values and initial states. Add parameter gradients to `sums`."""
        pairs: list[tuple[Tensor, Tensor | None]] = [*zip(self.values_out, d_values, strict=True)]
        for state, d_state in zip(self.states_out, d_states, strict=True):
            pairs += zip(state, d_state, strict=True)
        inputs = [*self.values, *(t for state in self.states for t in state)]
        gradients = _gradients(pairs, [*inputs, *self.cell.parameters])
        for parameter, gradient in zip(self.cell.parameters, gradients[len(inputs) :], strict=True):
            sums.add(parameter, gradient)
        taken = iter(gradients)
        d_values_in = tuple(next(taken) for _ in self.values)
        return d_values_in, [tuple(_compact(next(taken)) for _ in state) for state in self.states]


def _trainable(modules: Iterable[nn.Module]) -> tuple[nn.Parameter, ...]:
    return tuple(p for module in modules for p in module.parameters() if p.requires_grad)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())


def _compact(gradient: Tensor | None) -> Tensor | None:
    """Return the gradient in memory of its own. A view would keep a larger tensor alive until the chunk before."""
    if gradient is None or gradient.untyped_storage().nbytes() <= gradient.nbytes:
        return gradient
    return gradient.clone()


def _gradients(pairs: Sequence[tuple[Tensor, Tensor | None]], inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradient of each input from `pairs` of outputs and their gradients; None if no gradient reaches it."""
    used = [(out, gradient) for out, gradient in pairs if gradient is not None and out.requires_grad]
    wanted = [i for i, tensor in enumerate(inputs) if tensor.requires_grad]
    gradients: list[Tensor | None] = [None] * len(inputs)
    if used and wanted:
        outputs, seeds = zip(*used, strict=True)
        got = torch.autograd.grad(outputs, [inputs[i] for i in wanted], seeds, allow_unused=True)
        for i, gradient in zip(wanted, got, strict=True):
            gradients[i] = gradient
    return gradients

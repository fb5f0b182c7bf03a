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
from ma2mba.magc.contract import check_result
from ma2mba.magc.gradients import GradientSums
from ma2mba.magc.leaves import Recorded, check_leaves, operations_so_far
from ma2mba.magc.packing import State
from ma2mba.magc.weights import Owned, Weights, modules_of, tensors_of, version

IN_PLACE = "leaf Variable that requires grad"
"""Part of PyTorch's error for a change in place of an input of a recomputation."""
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
    """One element of a cell: a layer with a state (`depth` 1), or a function of the values alone (`depth` 0).

    name     The piece's name in messages.
    modules  All modules whose parameters the piece uses.
    """

    run: Callable[[Values, Sequence[State]], tuple[Values, list[State]]]
    depth: int
    name: str
    modules: tuple[Owned, ...]
    layer: Any = None

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters that need a gradient now, each once."""
        found = dict.fromkeys(p for _, module in self.modules for p in module._parameters.values())
        return tuple(p for p in found if p is not None and p.requires_grad)

    @staticmethod
    def of_layer(layer: nn.Module, name: str = "the layer") -> "Piece":
        """Return a layer as a piece. The layer changes the first value, x; the other values pass by unchanged."""

        def run(values: Values, states: Sequence[State]) -> tuple[Values, list[State]]:
            x, state = check_result(name, values[0], states[0], layer(values[0], states[0]))
            return (x, *values[1:]), [state]

        return Piece(run, 1, name, modules_of(name, [layer]), layer)

    @staticmethod
    def of_function(
        function: Callable[..., Values], modules: Iterable[nn.Module], name: str = "the function"
    ) -> "Piece":
        """Return `function(*values) -> values` as a piece. `modules` own the parameters that the function uses."""
        owned = tuple(o for module in modules for o in modules_of(type(module).__name__, [module]))
        return Piece(lambda values, states: (function(*values), []), 0, name, owned)

    def remember(self, values: Values, states: Sequence[State]) -> tuple[Values, list[State], Any]:
        """Do what `run` does and return the memo as well; None if the layer has no `remember`."""
        if not hasattr(self.layer, "remember"):
            return *self.run(values, states), None
        x, state, memo = self.layer.remember(values[0], states[0])
        x, state = check_result(self.name, values[0], states[0], (x, state))
        return (x, *values[1:]), [state], memo

    def recall(self, values: Values, states: Sequence[State], memo: Any) -> tuple[Values, list[State]]:
        """Do what `run` does, with less work if there is a memo."""
        if memo is None:
            return self.run(values, states)
        x, state = check_result(self.name, values[0], states[0], self.layer.recall(values[0], states[0], memo))
        return (x, *values[1:]), [state]


class Cell:
    """The plain step: keeps its inputs in forward, and runs its pieces again, with an autograd graph, in backward.

    weights   The tensors of the run that uses this cell; None outside of a run.
    examined  False at the start of a run: the first chunk of forward then records a graph as well, so that a gradient
              that would get lost is an error before the first backward.
    """

    def __init__(self, pieces: Sequence[Piece]):
        self.pieces = tuple(pieces)
        self.depth = sum(piece.depth for piece in pieces)
        self.parameters = tuple(dict.fromkeys(p for piece in pieces for p in piece.parameters))
        self.name = ", ".join(piece.name for piece in pieces)
        self.weights: Weights | None = None
        self.examined = True
        self._borrowed: tuple[Tensor, ...] = ()

    def examine(self, recorded: Sequence[Recorded], inputs: Sequence[Tensor]) -> None:
        """Raise ValueError if a piece uses a tensor that would get no gradient."""
        if self.weights is None:
            return
        borrowed = dict.fromkeys(self._borrowed if self.examined else ())
        for piece, record in zip(self.pieces, recorded, strict=True):
            if not self.skips(piece):
                borrowed |= dict.fromkeys(check_leaves(record, inputs, recorded[0].began, self.weights))
        self._borrowed, self.examined = tuple(borrowed), True

    def skips(self, piece: Piece) -> bool:
        """Return True for a layer after the first chunk. Front and head may use other modules for other chunks."""
        return self.examined and piece.depth > 0

    def leaves(self) -> tuple[Tensor, ...]:
        """Return all tensors that need a gradient: those of the modules, and those that a piece uses of others."""
        own = (t for piece in self.pieces for _, module in piece.modules for t in tensors_of(module))
        return tuple(dict.fromkeys((*(t for t in own if t.requires_grad), *self._borrowed)))

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

    def recall(
        self,
        values: Values,
        states: Sequence[State],
        memos: Sequence[Any],
        recorded: list[Recorded] | None = None,
    ) -> tuple[Values, list[State]]:
        """Do what `run` does, with less work for each piece that has a memo. Append to `recorded` for each piece."""
        final: list[State] = []
        for piece, memo in zip(self.pieces, memos, strict=True):
            began = operations_so_far()
            values, piece_states = piece.recall(values, states[len(final) : len(final) + piece.depth], memo)
            final += piece_states
            if recorded is not None:
                outputs = () if self.skips(piece) else (*values, *(t for state in piece_states for t in state))
                recorded.append(Recorded.of(piece.name, outputs, began))
        return values, final

    def forward(self, values: Values, states: Sequence[State], keep: bool) -> tuple[Values, list[State], Any]:
        residual = self.residual(values, states) if keep else None
        if not self.examined:
            return *Tape(self, values, states).outputs(), residual
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
    """One forward of a cell with an autograd graph. The inputs are leaves, so the graph ends at the cell's edge.

    parameters  The other leaves of the graph: all tensors that get a gradient, whoever owns them.
    """

    def __init__(self, cell: Cell, values: Values, states: Sequence[State], memos: Sequence[Any] | None = None):
        self.values = tuple(_leaf(t) for t in values)
        self.states = [tuple(_leaf(t) for t in state) for state in states]
        recorded: list[Recorded] = []
        memos = [None] * len(cell.pieces) if memos is None else memos
        versions = [version(t) for t in self._inputs()]
        try:
            with torch.enable_grad():
                self.values_out, self.states_out = cell.recall(self.values, self.states, memos, recorded)
            unchanged = versions == [version(t) for t in self._inputs()]
        except RuntimeError as error:
            unchanged = IN_PLACE not in str(error)
            if unchanged:
                raise
        if not unchanged:
            name = cell.pieces[len(recorded)].name if len(recorded) < len(cell.pieces) else cell.name
            raise ValueError(f"{name} changes its input or its state in place. Clone it first, and return the result")
        cell.examine(recorded, self._inputs())
        self.parameters = cell.leaves()

    def _inputs(self) -> list[Tensor]:
        return [*self.values, *(t for state in self.states for t in state)]

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
        inputs = self._inputs()
        gradients = _gradients(pairs, [*inputs, *self.parameters])
        for parameter, gradient in zip(self.parameters, gradients[len(inputs) :], strict=True):
            sums.add(parameter, gradient)
        taken = iter(gradients)
        d_values_in = tuple(next(taken) for _ in self.values)
        return d_values_in, [tuple(_compact(next(taken)) for _ in state) for state in self.states]


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point() or tensor.is_complex())


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

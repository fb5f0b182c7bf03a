"""A step that keeps the graph of its one recomputation, so that what follows can use the output of it.

A chain of cells recomputes each cell for itself: the one whose output is wanted runs once more. A chain of live steps
runs forward with graphs, all of them alive at once, and then backward: a chunk runs twice in all.
"""

from collections.abc import Sequence
from typing import Any

from ma2mba.magc.cell import Cell, Gradients, Sink, State, Tape, Values


class Live:
    """A cell whose residual is its graph."""

    def __init__(self, cell: Cell):
        self.cell, self.depth = cell, cell.depth

    def forward(self, values: Values, states: Sequence[State], keep: bool) -> tuple[Values, list[State], Any]:
        if not keep:
            return self.cell.forward(values, states, keep=False)
        tape = Tape(self.cell, values, states)
        return (*tape.outputs(), tape)

    def residual(self, values: Values, states: Sequence[State]) -> Any:
        return Tape(self.cell, values, states)

    def backward(
        self, residual: Any, d_values: Gradients, d_states: Sequence[Gradients], sink: Sink
    ) -> tuple[Gradients, list[Gradients]]:
        return residual.backward(d_values, d_states, sink)

"""A step that keeps the graph of its one recomputation, so that what follows can use the output of it.

A chain of cells recomputes each cell for itself: the one whose output is wanted runs once more. A chain of live steps
runs forward with graphs, all of them alive at once, and then backward: a chunk runs twice in all.
"""

from collections.abc import Sequence
from typing import Any

import torch

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

    def remember(self, values: Values, states: Sequence[State]) -> tuple[Values, list[State], Any]:
        """Forward without a graph, and what makes `recall` cheaper than `residual`."""
        with torch.no_grad():
            return self.cell.remember(values, states)

    def recall(self, values: Values, states: Sequence[State], memo: Any) -> Any:
        return Tape(self.cell, values, states, memo)

    def backward(
        self, residual: Any, d_values: Gradients, d_states: Sequence[Gradients], sink: Sink
    ) -> tuple[Gradients, list[Gradients]]:
        return residual.backward(d_values, d_states, sink)

"""The sequence axis: one step over the chunks of a sequence, keeping only the states between them.

A sequence is a list of chunks, each the `values` of the step; a list that makes its items when asked (frames to decode,
say) serves as well, and is asked once in forward and once in backward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ma2mba.magc.cell import Gradients, Sink, State, Step, Values
from ma2mba.magc.context import Surroundings
from ma2mba.magc.plan import StashPlace
from ma2mba.magc.stash import HostMemory, Stash


@dataclass(frozen=True)
class _Residual:
    chunks: Sequence[Values]
    boundaries: Stash
    surroundings: list[Surroundings]


class Scan:
    """Forward walks the chunks first to last. Backward walks them last to first, recomputes each from its first state
    and hands the gradient of that state to the chunk before: back-propagation through the whole sequence."""

    def __init__(self, step: Step, stash: StashPlace):
        self.step = step
        self.depth = step.depth
        self.stash, self.memory = stash, HostMemory()

    def forward(
        self, chunks: Sequence[Values], states: Sequence[State], keep: bool
    ) -> tuple[list[Values], list[State], Any]:
        residual = _Residual(chunks, Stash(self.stash, self.memory), [])
        outputs = []
        for i in range(len(chunks)):
            if keep:
                residual.boundaries.push(states)
                residual.surroundings.append(Surroundings.capture())
            values, states, _ = self.step.forward(chunks[i], states, keep=False)
            outputs.append(values)
        return outputs, list(states), residual if keep else None

    def residual(self, chunks: Sequence[Values], states: Sequence[State]) -> Any:
        return self.forward(chunks, states, keep=True)[2]

    def backward(
        self, residual: Any, d_values: Sequence[Gradients], d_states: Sequence[Gradients], sink: Sink
    ) -> tuple[list[Gradients], list[Gradients]]:
        d_chunks: list[Gradients] = []
        for i in reversed(range(len(residual.chunks))):
            with residual.surroundings[i].restored():
                inner = self.step.residual(residual.chunks[i], residual.boundaries.pop())
            d_chunk, d_states = self.step.backward(inner, d_values[i], d_states, sink)
            d_chunks.append(d_chunk)
        return d_chunks[::-1], list(d_states)

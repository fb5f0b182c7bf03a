"""The sequence axis: one step over the chunks of a sequence, keeping only the states between them.

A sequence is a list of chunks, each the `values` of the step; a list that makes its items when asked (frames to decode,
say) serves as well, and is asked once in forward and once in backward (twice where `every` is over 1).
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ma2mba.magc.cell import Gradients, State, Values
from ma2mba.magc.context import ForwardContext
from ma2mba.magc.gradients import GradientSums
from ma2mba.magc.plan import StashPlace
from ma2mba.magc.stash import HostMemory, Stash


@dataclass
class _Residual:
    """What backward needs. `last` is what the step kept of the last chunk, as long as no other forward has run."""

    chunks: Sequence[Values]
    boundaries: Stash
    contexts: list[ForwardContext] = field(default_factory=list)
    memos: dict[int, Any] = field(default_factory=dict)
    last: Any = None


class Scan:
    """Forward walks the chunks first to last. Backward walks them last to first, recomputes each from its first state
    and hands the gradient of that state to the chunk before: back-propagation through the whole sequence.

    The last chunk's residual is kept from forward, so that it is not recomputed. With `every` over 1 only every so many
    states are kept; those between are made again, one segment at a time, by one more forward. Of the newest `memos`
    chunks besides the last, what the step remembers spares work in their recomputation.
    """

    def __init__(self, step: Any, stash: StashPlace, every: int = 1, memos: int = 0):
        self.step = step
        self.depth = step.depth
        self.stash, self.every, self.memos, self.memory = stash, every, memos, HostMemory()
        self._newest: weakref.ref[_Residual] | None = None

    def forward(
        self, chunks: Sequence[Values], states: Sequence[State], keep: bool
    ) -> tuple[list[Values], list[State], Any]:
        self._forget_last()
        residual = _Residual(chunks, Stash(self.stash, self.memory))
        outputs, inner = [], None
        for i in range(len(chunks)):
            if keep:
                residual.contexts.append(ForwardContext.capture())
                if i % self.every == 0:
                    residual.boundaries.push(states)
            before_last = len(chunks) - 1 - i
            if keep and 0 < before_last <= self.memos:
                values, states, residual.memos[i] = self.step.remember(chunks[i], states)
            else:
                values, states, inner = self.step.forward(chunks[i], states, keep and not before_last)
            outputs.append(values)
        residual.last, self._newest = inner, weakref.ref(residual)
        return outputs, list(states), residual if keep else None

    def residual(self, chunks: Sequence[Values], states: Sequence[State]) -> Any:
        return self.forward(chunks, states, keep=True)[2]

    def backward(
        self, residual: Any, d_values: Sequence[Gradients], d_states: Sequence[Gradients], sink: GradientSums
    ) -> tuple[list[Gradients], list[Gradients]]:
        d_chunks: list[Gradients] = []
        end = len(residual.chunks)
        if residual.last is not None:
            inner, residual.last = residual.last, None
            end -= 1
            d_chunk, d_states = self.step.backward(inner, d_values[end], d_states, sink)
            d_chunks.append(d_chunk)
            if end % self.every == 0:
                residual.boundaries.drop()
        for start in reversed(range(0, end, self.every)):
            segment = range(start, min(start + self.every, end))
            states = self._states_before(residual, segment)
            for i in reversed(segment):
                inner = self._recompute(residual, i, states.pop())
                d_chunk, d_states = self.step.backward(inner, d_values[i], d_states, sink)
                d_chunks.append(d_chunk)
        return d_chunks[::-1], list(d_states)

    def _recompute(self, residual: _Residual, i: int, states: Sequence[State]) -> Any:
        with residual.contexts[i].restored():
            if i in residual.memos:
                return self.step.recall(residual.chunks[i], states, residual.memos.pop(i))
            return self.step.residual(residual.chunks[i], states)

    def _states_before(self, residual: _Residual, segment: range) -> Stash:
        """The states before the chunks of a segment."""
        if self.every == 1:
            return residual.boundaries
        before, states = Stash(self.stash, self.memory), residual.boundaries.pop()
        before.push(states)
        for i in segment[:-1]:
            with residual.contexts[i].restored():
                states = self.step.forward(residual.chunks[i], states, keep=False)[1]
            before.push(states)
        return before

    def _forget_last(self) -> None:
        """A step may keep its residual in memory that the next forward uses again (`graphs.py`)."""
        earlier = self._newest and self._newest()
        if earlier:
            earlier.last = None

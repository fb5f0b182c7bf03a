"""The sequence axis: one step over the chunks of a sequence, where only the recurrent states between chunks are kept.

`Scan.backward` runs from the last chunk to the first and gives the gradient of a chunk's first states to the chunk
before, as the gradient of that chunk's last states.

This is the axis that the paper adds to gradient checkpointing (arXiv 2411.19460): states are kept every
`Plan.chunk_tokens` tokens (s in the paper).

A sequence is a list of chunks; each chunk is the `values` of the step. The list may also build a chunk when it is asked
for, for example by decoding frames. It is asked once per chunk in forward and once in backward (twice with
`stash_every` over 1).
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
class _ScanResidual:
    """What backward needs.

    boundaries        The states before every `stash_every`-th chunk.
    forward_contexts  The random numbers and autocast mode before each chunk.
    memos             Chunk number -> what the step remembers of the chunk.
    last              The step's residual of the last chunk; None if another forward has run since.
    """

    chunks: Sequence[Values]
    boundaries: Stash
    forward_contexts: list[ForwardContext] = field(default_factory=list)
    memos: dict[int, Any] = field(default_factory=dict)
    last: Any = None


class Scan:
    """Runs a step over all chunks, first to last in forward and last to first in backward.

    Backward recomputes each chunk from its initial states. The step turns the gradient of the chunk's final states into
    the gradient of its initial states. The initial states of a chunk are the final states of the chunk before, so that
    gradient goes to the chunk before. This is exact back-propagation through time over the whole sequence.

    step         Any `Step`; with `memo_chunks` over 0 a `GraphCell`, which has `remember` and `recall`.
    stash        Where states are kept.
    stash_every  Keep the states before every N-th chunk only. Backward recomputes the states between, one segment of N
                 chunks at a time, with one more forward.
    memo_chunks  Number of chunks before the last one whose memos are kept, to make their recomputation cheaper. The
                 last chunk needs no memo: its residual is kept from forward, so it is not recomputed at all.
    """

    def __init__(self, step: Any, stash: StashPlace, stash_every: int = 1, memo_chunks: int = 0):
        self.step = step
        self.depth = step.depth
        self.stash, self.stash_every, self.memo_chunks = stash, stash_every, memo_chunks
        self._host_memory = HostMemory()
        self._newest: weakref.ref[_ScanResidual] | None = None

    def forward(
        self, chunks: Sequence[Values], states: Sequence[State], keep: bool
    ) -> tuple[list[Values], list[State], Any]:
        self._drop_older_last()
        residual = _ScanResidual(chunks, self._new_stash())
        outputs, inner = [], None
        for i in range(len(chunks)):
            if keep:
                residual.forward_contexts.append(ForwardContext.current())
                if i % self.stash_every == 0:
                    residual.boundaries.push(states)
            chunks_after = len(chunks) - 1 - i
            if keep and 0 < chunks_after <= self.memo_chunks:
                values, states, residual.memos[i] = self.step.remember(chunks[i], states)
            else:
                values, states, inner = self.step.forward(chunks[i], states, keep and chunks_after == 0)
            outputs.append(values)
        residual.last, self._newest = inner, weakref.ref(residual)
        return outputs, list(states), residual if keep else None

    def residual(self, chunks: Sequence[Values], states: Sequence[State]) -> Any:
        return self.forward(chunks, states, keep=True)[2]

    def backward(
        self, residual: Any, d_values: Sequence[Gradients], d_states: Sequence[Gradients], sums: GradientSums
    ) -> tuple[list[Gradients], list[Gradients]]:
        """Return the gradients of the chunks, and of the states before the first chunk.

        d_values  The gradient of each chunk's output.
        d_states  The gradient of the states after the last chunk. In the loop it is the gradient of the states after
                  chunk i, and then, as the result of the step, of the states before chunk i.
        """
        d_chunks: list[Gradients] = []
        end = len(residual.chunks)
        if residual.last is not None:
            inner, residual.last = residual.last, None  # one name for all chunks: the loop below frees this one
            end -= 1
            d_chunk, d_states = self.step.backward(inner, d_values[end], d_states, sums)
            d_chunks.append(d_chunk)
            if end % self.stash_every == 0:
                residual.boundaries.drop()
        for start in reversed(range(0, end, self.stash_every)):
            segment = range(start, min(start + self.stash_every, end))
            initial_states = self._states_before(residual, segment)
            for i in reversed(segment):
                inner = self._recompute(residual, i, initial_states.pop())
                d_chunk, d_states = self.step.backward(inner, d_values[i], d_states, sums)
                d_chunks.append(d_chunk)
        return d_chunks[::-1], list(d_states)

    def _recompute(self, residual: _ScanResidual, i: int, states: Sequence[State]) -> Any:
        """Return the step's residual of chunk i, whose initial states are `states`."""
        with residual.forward_contexts[i].restored():
            if i in residual.memos:
                return self.step.recall(residual.chunks[i], states, residual.memos.pop(i))
            return self.step.residual(residual.chunks[i], states)

    def _states_before(self, residual: _ScanResidual, segment: range) -> Stash:
        """Return a stash that pops the initial states of the segment's chunks, last chunk first."""
        if self.stash_every == 1:
            return residual.boundaries
        stash, states = self._new_stash(), residual.boundaries.pop()
        stash.push(states)
        for i in segment[:-1]:
            with residual.forward_contexts[i].restored():
                states = self.step.forward(residual.chunks[i], states, keep=False)[1]
            stash.push(states)
        return stash

    def _new_stash(self) -> Stash:
        return Stash(self.stash, self._host_memory)

    def _drop_older_last(self) -> None:
        """Drop the `last` of the previous forward; its backward then recomputes that chunk.

        A `CapturedCell` keeps its residual in fixed memory, which the next forward overwrites.
        """
        older = self._newest and self._newest()
        if older:
            older.last = None

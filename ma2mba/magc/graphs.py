"""A live step recorded in CUDA graphs: a chunk of layers costs three launches instead of thousands.

Three graphs: forward without gradients, forward with them, backward. The first chunk runs as it is (it compiles and
tunes kernels), the second is recorded, the others replay. Recorded work reads and writes fixed memory: inputs are
copied in; outputs are copied out where they outlive the next replay. Every replay draws the same random numbers, so
layers with dropout must not be graphed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ma2mba.magc.cell import Cell, Gradients, Sink, State, Tape, Values
from ma2mba.magc.live import Live


@dataclass
class _Recording:
    """The fixed memory and the graphs of one shape."""

    values: Values
    states: list[State]
    runs: dict[str, int] = field(default_factory=dict)
    graphs: dict[str, torch.cuda.CUDAGraph] = field(default_factory=dict)
    forward_out: tuple[Values, list[State]] | None = None
    tape: Tape | None = None
    d_out: list[Tensor] = field(default_factory=list)
    d_in: tuple[Gradients, list[Gradients]] | None = None

    def load(self, values: Values, states: Sequence[State]) -> None:
        for fixed, given in zip([*self.values, *_flat(self.states)], [*values, *_flat(states)], strict=True):
            fixed.copy_(given)

    def load_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        assert self.tape is not None
        if not self.d_out:
            outputs = [*self.tape.values_out, *_flat(self.tape.states_out)]
            self.d_out = [torch.zeros_like(t) for t in outputs]
        for fixed, given in zip(self.d_out, gradients, strict=True):
            if given is None:
                fixed.zero_()
            else:
                fixed.copy_(given)


class Graphed:
    """Runs like `live.Live`; chunks of `tokens` tokens, of the first batch size seen, are recorded, others run plainly.

    The sink of every backward must be one `StandingSink`: additions to its sums are recorded.
    """

    def __init__(self, cell: Cell, tokens: int):
        self.cell, self.depth, self.tokens = cell, cell.depth, tokens
        self._live = Live(cell)
        self._recording: _Recording | None = None
        self._pool: Any = None
        self._stream = torch.cuda.Stream()
        # Autograd hands a gradient over on the stream that was current when the parameter's node was made; a recording
        # may not touch the default one. So make the nodes here, and keep them.
        with torch.cuda.stream(self._stream):
            self._nodes = [torch.autograd.graph.get_gradient_edge(p) for p in cell.parameters]

    def forward(self, values: Values, states: Sequence[State], keep: bool) -> tuple[Values, list[State], Any]:
        if keep:
            residual = self.residual(values, states)
            tape = residual.tape if isinstance(residual, _Recording) else residual
            assert isinstance(tape, Tape)
            return (*tape.outputs(), residual)
        recording = self._load(values, states)
        if recording is None:
            return self._live.forward(values, states, keep=False)

        def run() -> None:
            recording.forward_out = self.cell.forward(recording.values, recording.states, keep=False)[:2]

        self._do(recording, "forward", run)
        assert recording.forward_out is not None
        values, after = recording.forward_out
        return values, [tuple(t.clone() for t in state) for state in after], None

    def residual(self, values: Values, states: Sequence[State]) -> Any:
        recording = self._load(values, states)
        if recording is None:
            return self._live.residual(values, states)

        def run() -> None:
            recording.tape = Tape(self.cell, recording.values, recording.states)

        self._do(recording, "tape", run)
        return recording

    def backward(
        self, residual: Any, d_values: Gradients, d_states: Sequence[Gradients], sink: Sink
    ) -> tuple[Gradients, list[Gradients]]:
        if not isinstance(residual, _Recording):
            return self._live.backward(residual, d_values, d_states, sink)
        recording, tape = residual, residual.tape
        assert tape is not None
        recording.load_gradients([*d_values, *_flat(d_states)])

        def run() -> None:
            taken = iter(recording.d_out)
            values = tuple(next(taken) for _ in tape.values_out)
            recording.d_in = tape.backward(values, [tuple(next(taken) for _ in s) for s in tape.states_out], sink)

        self._do(recording, "backward", run)
        assert recording.d_in is not None
        d_in, d_before = recording.d_in
        # The next chunk's forward writes where these lie before anybody reads them.
        return d_in, [tuple(t if t is None else t.clone() for t in state) for state in d_before]

    def _load(self, values: Values, states: Sequence[State]) -> _Recording | None:
        """The recording with these inputs in its fixed memory, or None for a chunk that is not recorded."""
        if values[0].shape[1] != self.tokens:
            return None
        if self._recording is None:
            self._recording = _Recording(
                tuple(t.detach().clone() for t in values), [tuple(t.detach().clone() for t in s) for s in states]
            )
        if values[0].shape != self._recording.values[0].shape:
            return None
        self._recording.load(values, states)
        return self._recording

    def _do(self, recording: _Recording, name: str, run: Any) -> None:
        seen = recording.runs.get(name, 0)
        recording.runs[name] = seen + 1
        if seen == 0:
            run()
            return
        if seen == 1:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                run()
            self._pool = graph.pool()
            recording.graphs[name] = graph
        recording.graphs[name].replay()


def _flat(states: Sequence[Sequence[Any]]) -> list[Any]:
    return [t for state in states for t in state]

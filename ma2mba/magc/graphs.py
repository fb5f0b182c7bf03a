"""A live step recorded in CUDA graphs: a chunk of layers costs three launches instead of thousands.

Three graphs: forward without gradients, forward with them, backward. The first chunk runs as it is (it compiles and
tunes kernels), the second is recorded, the others replay. Recorded work reads and writes fixed memory: inputs are
copied in; outputs are copied out, for they outlive the next replay. Every replay draws the same random numbers, so
layers with dropout must not be graphed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ma2mba.magc.cell import Cell, Gradients, Sink, Tape, Values
from ma2mba.magc.live import Live
from ma2mba.magc.packing import PackedStates, State, pack


@dataclass
class _Recording:
    """The fixed memory and the graphs of one shape. `d_states` holds the gradients of the states after the chunk before
    a backward, and of those before it afterwards."""

    values: Values
    states: PackedStates
    d_states: PackedStates
    runs: dict[str, int] = field(default_factory=dict)
    graphs: dict[str, torch.cuda.CUDAGraph] = field(default_factory=dict)
    values_out: Values = ()
    tape: Tape | None = None
    d_values_out: list[Tensor] = field(default_factory=list)
    d_values: Gradients = ()

    @staticmethod
    def like(values: Values, states: Sequence[State]) -> "_Recording":
        packed = pack(states).clone()
        return _Recording(tuple(t.detach().clone() for t in values), packed, packed.clone())

    def load(self, values: Values, states: Sequence[State]) -> None:
        for fixed, given in zip(self.values, values, strict=True):
            fixed.copy_(given)
        self.states.load(states)

    def load_gradients(self, d_values: Gradients, d_states: Sequence[Gradients]) -> None:
        assert self.tape is not None
        if not self.d_values_out:
            self.d_values_out = [torch.zeros_like(t) for t in self.tape.values_out]
        for fixed, given in zip(self.d_values_out, d_values, strict=True):
            if given is None:
                fixed.zero_()
            else:
                fixed.copy_(given)
        self.d_states.load_gradients(d_states)


class Graphed:
    """Runs like `live.Live`; chunks of `tokens` tokens, of the first batch size seen, are recorded, others run plainly.

    The sink of every backward must be one `StandingSink`: additions to its sums are recorded. A residual is good until
    the next forward.
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
        recording = self._load(values, states)
        if recording is None:
            return self._live.forward(values, states, keep)
        if keep:
            self._record_tape(recording)
            assert recording.tape is not None
            values_out, after = recording.tape.outputs()
            return tuple(t.clone() for t in values_out), pack(after), recording

        def run() -> None:
            recording.values_out, states_out, _ = self.cell.forward(recording.values, recording.states, keep=False)
            recording.states.load(states_out)

        self._do(recording, "forward", run)
        return recording.values_out, recording.states.clone(), None

    def residual(self, values: Values, states: Sequence[State]) -> Any:
        recording = self._load(values, states)
        if recording is None:
            return self._live.residual(values, states)
        self._record_tape(recording)
        return recording

    def backward(
        self, residual: Any, d_values: Gradients, d_states: Sequence[Gradients], sink: Sink
    ) -> tuple[Gradients, list[Gradients]]:
        if not isinstance(residual, _Recording):
            return self._live.backward(residual, d_values, d_states, sink)
        recording, tape = residual, residual.tape
        assert tape is not None
        recording.load_gradients(d_values, d_states)

        def run() -> None:
            recording.d_values, d_before = tape.backward(tuple(recording.d_values_out), recording.d_states, sink)
            recording.d_states.load_gradients(d_before)

        self._do(recording, "backward", run)
        return recording.d_values, recording.d_states.clone()  # type: ignore[return-value]

    def _record_tape(self, recording: _Recording) -> None:
        def run() -> None:
            recording.tape = Tape(self.cell, recording.values, recording.states)

        self._do(recording, "tape", run)

    def _load(self, values: Values, states: Sequence[State]) -> _Recording | None:
        """The recording with these inputs in its fixed memory, or None for a chunk that is not recorded."""
        if values[0].shape[1] != self.tokens:
            return None
        if self._recording is None:
            self._recording = _Recording.like(values, states)
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

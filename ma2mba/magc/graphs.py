"""A live step captured in CUDA graphs: a chunk of layers costs three launches instead of thousands.

Three graphs: forward without gradients, forward with them, backward. The first chunk runs as it is (it compiles and
tunes kernels), the second is captured, the others replay. Captured work reads and writes fixed memory: inputs are
copied in; outputs are copied out, for they outlive the next replay. Every replay draws the same random numbers, so
layers with dropout must not be graphed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ma2mba.magc.cell import Cell, Gradients, GraphCell, Tape, Values
from ma2mba.magc.gradients import GradientSums
from ma2mba.magc.packing import PackedStates, State, pack


@dataclass
class _Capture:
    """The fixed memory and the graphs of one shape: x, the states, and gradients of both. `d_states` holds those of the
    states after the chunk before a backward, and those of the states before it afterwards."""

    x: Tensor
    states: PackedStates
    d_states: PackedStates
    runs: dict[str, int] = field(default_factory=dict)
    graphs: dict[str, torch.cuda.CUDAGraph] = field(default_factory=dict)
    y: Tensor | None = None
    tape: Tape | None = None
    d_y: Tensor | None = None
    d_x: Tensor | None = None

    @staticmethod
    def like(x: Tensor, states: Sequence[State]) -> "_Capture":
        packed = pack(states).clone()
        return _Capture(x.detach().clone(), packed, packed.clone())

    def load_gradients(self, d_y: Tensor | None, d_states: Sequence[Gradients]) -> None:
        assert self.tape is not None
        if self.d_y is None:
            self.d_y = torch.zeros_like(self.tape.values_out[0])
        if d_y is None:
            self.d_y.zero_()
        else:
            self.d_y.copy_(d_y)
        self.d_states.load_gradients(d_states)


@cache
def _recording_stream(device: int) -> torch.cuda.Stream:
    """One for all recordings: those of the same parameters share the parameters' nodes."""
    return torch.cuda.Stream(device)


class CapturedCell:
    """Runs like `GraphCell`; captures chunks of `tokens` tokens and the first batch size seen, runs others plainly.

    Of a chunk's values the layers see the first, x; the others pass by. The sink of every backward must be one
    `PersistentSums`: additions to its sums are captured. A residual is good until the next forward.
    """

    def __init__(self, cell: Cell, tokens: int):
        self.cell, self.depth, self.tokens = cell, cell.depth, tokens
        self._live = GraphCell(cell)
        self._recording: _Capture | None = None
        self._pool: Any = None
        self._stream = _recording_stream(torch.cuda.current_device())
        # Autograd hands a gradient over on the stream that was current when the parameter's node was made; a recording
        # may touch no other. So make the nodes here, and keep them; a torch that warns of that where a chunk is not
        # captured waits as it should.
        getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", bool)(False)
        with torch.cuda.stream(self._stream):
            self._nodes = [torch.autograd.graph.get_gradient_edge(p) for p in cell.parameters]

    def forward(self, values: Values, states: Sequence[State], keep: bool) -> tuple[Values, list[State], Any]:
        recording = self._load(values[0], states)
        if recording is None:
            return self._live.forward(values, states, keep)
        if keep:
            self._record_tape(recording)
            assert recording.tape is not None
            (y,), after = recording.tape.outputs()
            return (y.clone(), *values[1:]), pack(after), recording

        def run() -> None:
            (recording.y,), states_out, _ = self.cell.forward((recording.x,), recording.states, keep=False)
            recording.states.load(states_out)

        self._do(recording, "forward", run)
        assert recording.y is not None
        return (recording.y, *values[1:]), recording.states.clone(), None

    def residual(self, values: Values, states: Sequence[State]) -> Any:
        recording = self._load(values[0], states)
        if recording is None:
            return self._live.residual(values, states)
        self._record_tape(recording)
        return recording

    def backward(
        self, residual: Any, d_values: Gradients, d_states: Sequence[Gradients], sink: GradientSums
    ) -> tuple[Gradients, list[Gradients]]:
        if not isinstance(residual, _Capture):
            return self._live.backward(residual, d_values, d_states, sink)
        recording, tape = residual, residual.tape
        assert tape is not None
        recording.load_gradients(d_values[0], d_states)

        def run() -> None:
            (recording.d_x,), d_before = tape.backward((recording.d_y,), recording.d_states, sink)
            recording.d_states.load_gradients(d_before)

        self._do(recording, "backward", run)
        return (recording.d_x, *d_values[1:]), recording.d_states.clone()  # type: ignore[return-value]

    def _record_tape(self, recording: _Capture) -> None:
        def run() -> None:
            recording.tape = Tape(self.cell, (recording.x,), recording.states)

        if recording.runs.get("tape") and not recording.runs.get("backward"):
            run()  # no backward followed the first one; it cannot run plainly from a captured tape
        else:
            self._do(recording, "tape", run)

    def _load(self, x: Tensor, states: Sequence[State]) -> _Capture | None:
        """The recording with these inputs in its fixed memory, or None for a chunk that is not captured."""
        if x.shape[1] != self.tokens:
            return None
        if self._recording is None:
            self._recording = _Capture.like(x, states)
        if x.shape != self._recording.x.shape:
            return None
        self._recording.x.copy_(x)
        self._recording.states.load(states)
        return self._recording

    def _do(self, recording: _Capture, name: str, run: Any) -> None:
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

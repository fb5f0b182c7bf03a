"""A `GraphCell` whose work is captured in CUDA graphs: a chunk costs three launches instead of thousands.

There are three CUDA graphs: forward without autograd, forward with autograd (the tape), and backward. The first chunk
runs plainly, which compiles and tunes kernels. The second chunk is captured. All later chunks replay.

A CUDA graph reads and writes fixed memory. So inputs are copied in, and outputs that must outlive the next replay are
copied out. Every replay draws the same random numbers, so captured layers must not use dropout.
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
    """The CUDA graphs of one shape of chunk, and their fixed memory: x, the states, and the gradients of both.

    d_states  Before a backward: gradients of the final states. After it: gradients of the initial states.
    runs      How often each of "forward", "tape" and "backward" has run.
    """

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
        """Copy the gradients of the outputs into fixed memory. None becomes zeros."""
        assert self.tape is not None
        if self.d_y is None:
            self.d_y = torch.zeros_like(self.tape.values_out[0])
        if d_y is None:
            self.d_y.zero_()
        else:
            self.d_y.copy_(d_y)
        self.d_states.load_gradients(d_states)


@cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    """Return the one stream for all captures on a device: captures of the same parameters share autograd's nodes."""
    return torch.cuda.Stream(device)


class CapturedCell:
    """A `GraphCell` that captures chunks of `tokens` tokens, for the first batch size that it sees. Others run plainly.

    The layers see x, the first value of a chunk; the other values pass by unchanged. Every backward must get the same
    `PersistentSums`, because the captured backward adds to them. A residual is valid until the next forward.
    """

    def __init__(self, cell: Cell, tokens: int):
        self.cell, self.depth, self.tokens = cell, cell.depth, tokens
        self._graph_cell = GraphCell(cell)
        self._capture: _Capture | None = None
        self._pool: Any = None
        self._stream = _capture_stream(torch.cuda.current_device())
        # Autograd hands a parameter's gradient over on the stream that was current when it made the parameter's node,
        # and a capture may use no other stream. So make the nodes on the capture stream, and keep them. If a chunk is
        # not captured, torch waits for that stream correctly, but newer versions warn: switch the warning off.
        getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", bool)(False)
        with torch.cuda.stream(self._stream):
            self._nodes = [torch.autograd.graph.get_gradient_edge(p) for p in cell.parameters]

    def forward(self, values: Values, states: Sequence[State], keep: bool) -> tuple[Values, list[State], Any]:
        capture = self._load(values[0], states)
        if capture is None:
            return self._graph_cell.forward(values, states, keep)
        if keep:
            self._run_tape(capture)
            assert capture.tape is not None
            (y,), final = capture.tape.outputs()
            return (y.clone(), *values[1:]), pack(final), capture

        if capture.runs.get("forward"):
            self.cell.examined = True  # in the first run; a captured forward must record no graph for backward

        def run() -> None:
            (capture.y,), states_out, _ = self.cell.forward((capture.x,), capture.states, keep=False)
            capture.states.load(states_out)

        self._run_or_replay(capture, "forward", run)
        assert capture.y is not None
        return (capture.y, *values[1:]), capture.states.clone(), None

    def residual(self, values: Values, states: Sequence[State]) -> Any:
        capture = self._load(values[0], states)
        if capture is None:
            return self._graph_cell.residual(values, states)
        self._run_tape(capture)
        return capture

    def backward(
        self, residual: Any, d_values: Gradients, d_states: Sequence[Gradients], sums: GradientSums
    ) -> tuple[Gradients, list[Gradients]]:
        if not isinstance(residual, _Capture):
            return self._graph_cell.backward(residual, d_values, d_states, sums)
        capture, tape = residual, residual.tape
        assert tape is not None
        capture.load_gradients(d_values[0], d_states)

        def run() -> None:
            (capture.d_x,), d_initial = tape.backward((capture.d_y,), capture.d_states, sums)
            capture.d_states.load_gradients(d_initial)

        self._run_or_replay(capture, "backward", run)
        return (capture.d_x, *d_values[1:]), capture.d_states.clone()  # type: ignore[return-value]

    def _load(self, x: Tensor, states: Sequence[State]) -> _Capture | None:
        """Copy the inputs into fixed memory and return the capture; None if the chunk must run plainly."""
        if x.shape[1] != self.tokens:
            return None
        if self._capture is None:
            self._capture = _Capture.like(x, states)
        if x.shape != self._capture.x.shape:
            return None
        self._capture.x.copy_(x)
        self._capture.states.load(states)
        return self._capture

    def _run_tape(self, capture: _Capture) -> None:
        """Run forward with autograd on the loaded inputs."""

        def run() -> None:
            capture.tape = Tape(self.cell, (capture.x,), capture.states)

        if capture.runs.get("tape") and not capture.runs.get("backward"):
            # The first tape had no backward. The first backward runs plainly and needs a plain tape: do not capture.
            run()
        else:
            self._run_or_replay(capture, "tape", run)

    def _run_or_replay(self, capture: _Capture, name: str, run: Any) -> None:
        """Run plainly the first time, capture and replay the second time, replay from then on."""
        seen = capture.runs.get(name, 0)
        capture.runs[name] = seen + 1
        if seen == 0:
            run()
            return
        if seen == 1:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                run()
            self._pool = graph.pool()
            capture.graphs[name] = graph
        capture.graphs[name].replay()

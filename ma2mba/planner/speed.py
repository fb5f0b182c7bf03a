"""How long a layer takes on a chunk: timed on the device at hand, or estimated from a device that was measured."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ma2mba.magc.cell import Cell, Piece, State, Step
from ma2mba.magc.gradients import GradientSums, PersistentSums
from ma2mba.magc.graphs import CapturedCell
from ma2mba.planner.cost import Cost, Curve, LayerPrice, Price, runs_of
from ma2mba.planner.measure import LENGTHS, first_alike

CLOCK_RISES = 0.2
"""Seconds of work after which an idle GPU runs at full clock."""
BURST = 4
"""Runs between two waits: directly after a wait the GPU is not yet fully supplied with kernels."""
ESTIMATED = (1, *LENGTHS, 4096, 8192, 16384)


@dataclass(frozen=True)
class Device:
    """The speed of an accelerator. The defaults are one NVIDIA H200 that runs Mamba-2-2.7B (64 layers) in bf16.

    matrix_flops    operations per second of matrix products.
    memory_bytes    bytes per second that copies move.
    passes_over_x   time of a layer's forward without its matrix products, as a number of reads or writes of x.
    launch_seconds  time of a layer's forward in a chunk so short that only the launches of kernels take time. The
                    recomputation and backward together launch three times as many kernels.
    replay_seconds  time that a captured chunk of any length adds to a layer's forward: it reads and writes weights and
                    sums of gradients, and kernels end unevenly.
    link_bytes      bytes per second between the device and pinned host memory, each way.
    """

    matrix_flops: float = 780e12  # measured: 750 to 806e12
    memory_bytes: float = 4.29e12  # measured
    # Half of a layer's time at 25,458 trained tokens a second without checkpointing (as long as 3 forwards).
    passes_over_x: float = 40.0
    launch_seconds: float = 1.04e-3  # measured: 15 tokens a second, one by one
    # Measured: 14,494, 16,138 and 17,187 tokens a second in chunks of 2,048, 4,096 and 8,192. This is 28.8 ms for each
    # chunk, divided by 64 layers and by 4: forward, recomputation and backward take as long as 4 forwards.
    replay_seconds: float = 0.11e-3
    link_bytes: float = 55e9


@dataclass(frozen=True)
class LayerSpeed:
    """Seconds of one layer by the tokens of a chunk.

    forward    a forward without a graph. backward is a forward with a graph and its backward.
    captured_  the same in a chunk that is replayed as CUDA graphs (`Plan.graphs`).
    memo       what a memo saves in the layer's recomputation (`Plan.memo_chunks`).
    """

    forward: Curve
    backward: Curve
    captured_forward: Curve
    captured_backward: Curve
    memo: Curve


@dataclass(frozen=True)
class Speed:
    """The speed of a model: of each layer, and the seconds of one forward of its front and of its head by tokens."""

    layers: tuple[LayerSpeed, ...]
    front: Curve
    head: Curve
    link_bytes: float = Device.link_bytes

    def forward(self, tokens: int, captured: bool, layers: int) -> float:
        """Return the seconds of a forward without a graph of the first `layers` layers."""
        seconds, left = 0.0, layers
        for layer, count in self._runs:
            curve = layer.captured_forward if captured else layer.forward
            seconds += min(count, left) * curve.at(tokens)
            left -= min(count, left)
        return seconds

    def backward(self, tokens: int, captured: bool) -> float:
        """Return the seconds of a forward with a graph and backward of all layers."""
        if captured:
            return sum(count * layer.captured_backward.at(tokens) for layer, count in self._runs)
        return sum(count * layer.backward.at(tokens) for layer, count in self._runs)

    def saved_by_memos(self, tokens: int, chunks: int) -> float:
        """Return the seconds that all layers' memos of `chunks` chunks save."""
        return sum(chunks * count * layer.memo.at(tokens) for layer, count in self._runs)

    @cached_property
    def _runs(self) -> tuple[tuple[LayerSpeed, int], ...]:
        return runs_of(self.layers)


def estimate(cost: Cost, device: Device = Device(), lengths: Sequence[int] = ESTIMATED) -> Speed:
    """Return the seconds that a cost's arithmetic takes: matrix products and then memory traffic, or the launches."""

    def end(price: Price | None) -> Curve:
        flops = (0.0 if price is None else 2 * price.flops.at(tokens) / device.matrix_flops for tokens in lengths)
        return Curve(tuple(zip(lengths, flops, strict=True)))

    layers = {layer: estimate_layer(layer, cost.x, device, lengths) for layer in dict.fromkeys(cost.layers)}
    return Speed(tuple(layers[layer] for layer in cost.layers), end(cost.front), end(cost.head), device.link_bytes)


def estimate_layer(layer: LayerPrice, x: Curve, device: Device, lengths: Sequence[int] = ESTIMATED) -> LayerSpeed:
    """Return the estimated speed of one layer; x as in `Cost`.

    A memo saves matrix products, but the rest of a call takes at least the launches of its kernels. The memory
    traffic that it saves too is not counted: for 12 memos in 16 chunks of 16,384 tokens, the products alone predict
    that 3.1% of the time is saved, and 2.7% was measured.
    """

    def forward(tokens: int) -> float:
        flops = max(layer.flops.at(tokens), 0) / device.matrix_flops
        return flops + device.passes_over_x * x.at(tokens) / device.memory_bytes

    def captured(tokens: int) -> float:
        return forward(tokens) + device.replay_seconds

    def saved(tokens: int) -> float:
        beyond_launches = max(forward(tokens) - device.launch_seconds, 0.0)
        return min(layer.memo_flops * tokens / device.matrix_flops, 3 * beyond_launches)

    def curve(seconds: Callable[[int], float], floor: float = 0.0) -> Curve:
        return Curve(tuple((tokens, max(seconds(tokens), floor)) for tokens in lengths))

    return LayerSpeed(
        curve(forward, device.launch_seconds),
        curve(lambda tokens: 3 * forward(tokens), 3 * device.launch_seconds),
        curve(captured),
        curve(lambda tokens: 3 * captured(tokens)),
        curve(saved),
    )


def clock(
    layers: Sequence[nn.Module],
    like_x: Tensor,
    cost: Cost,
    lengths: Sequence[int] = LENGTHS,
    repeats: int = 3,
    graphs: bool = True,
) -> Speed:
    """Return the speed of `layers`, timed on their device. Layers that are alike are timed once.

    Each time is the best of `repeats` bursts after the runs that warm up (and capture). A GPU runs more bursts until
    its clock has had time to rise from idle. With `graphs` False nothing is captured, for a run that cannot use graphs.
    The front, the head and the memos are estimated from the measured speed of the layers' matrix products.
    """
    kinds = first_alike(layers)
    prices = dict(zip(kinds, cost.layers, strict=True))
    seconds = {
        layer: _clocked_layer(layer, like_x, cost.x, price, lengths, repeats, graphs) for layer, price in prices.items()
    }
    longest = max(lengths)
    flops = sum(price.flops.at(longest) for price in prices.values())
    ends = estimate(cost, _as_fast_as(flops / sum(speed.forward.at(longest) for speed in seconds.values())))
    return Speed(tuple(seconds[layer] for layer in kinds), ends.front, ends.head, ends.link_bytes)


def _clocked_layer(
    layer: nn.Module, like_x: Tensor, x: Curve, price: LayerPrice, lengths: Sequence[int], repeats: int, graphs: bool
) -> LayerSpeed:
    cell = Cell([Piece.of_layer(layer)])
    plain = _clocked(cell, layer, like_x, lengths, repeats, captured=False)
    captured = _clocked(cell, layer, like_x, lengths, repeats, captured=True) if graphs and like_x.is_cuda else plain
    longest, seconds = plain[0].points[-1]
    return LayerSpeed(*plain, *captured, estimate_layer(price, x, _as_fast_as(price.flops.at(longest) / seconds)).memo)


def _as_fast_as(flops_a_second: float) -> Device:
    """Return a device on which layers' arithmetic has this rate: matrix products take half of a layer's time."""
    return Device(matrix_flops=2 * flops_a_second) if flops_a_second else Device()


def _clocked(
    cell: Cell, layer: nn.Module, like_x: Tensor, lengths: Sequence[int], repeats: int, *, captured: bool
) -> tuple[Curve, Curve]:
    """Return the seconds of forward without a graph, and of recomputation and backward."""
    state: State = tuple(layer.initial_state(like_x))  # type: ignore[operator]
    forward, backward = [], []
    with PersistentSums(cell.parameters) if captured else GradientSums(cell.parameters) as sink:
        for tokens in sorted(lengths):
            x = like_x.new_zeros(like_x.shape[0], tokens, like_x.shape[2])
            step: Step = CapturedCell(cell, tokens) if captured else cell
            d_state = [tuple(torch.zeros_like(t) for t in state)]

            def run_forward(step: Step = step, x: Tensor = x) -> None:
                step.forward((x,), [state], keep=False)

            def run_backward(step: Step = step, x: Tensor = x, d_state: list[State] = d_state) -> None:
                step.backward(step.residual((x,), [state]), (x,), d_state, sink)

            warm_up = 2 if captured else 1  # the first run tunes kernels, the second is captured
            forward.append((tokens, _best(run_forward, x.device, repeats, warm_up)))
            backward.append((tokens, _best(run_backward, x.device, repeats, warm_up)))
    return Curve(tuple(forward)), Curve(tuple(backward))


def _best(run: Callable[[], None], device: torch.device, repeats: int, warm_up: int) -> float:
    """Return the seconds of one run. A GPU runs a burst of them, with launches ahead of its work as in a real step."""
    burst, least = (BURST, CLOCK_RISES) if device.type == "cuda" else (1, 0.0)

    def timed() -> float:
        _wait(device)
        began = time.perf_counter()
        for _ in range(burst):
            run()
        _wait(device)
        return time.perf_counter() - began

    for _ in range(warm_up):
        run()
    seconds = [timed() for _ in range(repeats)]
    while sum(seconds) < least:
        seconds.append(timed())
    return min(seconds) / burst


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

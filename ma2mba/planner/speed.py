"""How long a layer takes on a chunk: measured on the device at hand, or estimated from one that was measured."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ma2mba.magc.cell import Cell, Piece, State, Step
from ma2mba.magc.gradients import GradientSums, PersistentSums
from ma2mba.magc.graphs import CapturedCell
from ma2mba.planner.cost import LENGTHS, Cost, Curve

CLOCK_RISES = 0.2
"""Seconds of work, after which an idle GPU runs at full clock."""
BURST = 4
"""Runs between two waits: after a wait the first kernels come one by one."""


@dataclass(frozen=True)
class Device:
    """What an accelerator does in a second. The defaults are one NVIDIA H200 running Mamba-2-2.7B in bf16:

    matrix_flops    matrix products (750 to 806e12 measured).
    memory_bytes    copies (4.29e12 measured).
    passes_over_x   a layer's forward besides its matrix products, in times that it reads or writes x: half of a layer's
                    time at 25,458 trained tokens a second without checkpointing (3 forwards' worth, 64 layers).
    launch_seconds  a layer's forward when its chunk is so short that only launching kernels counts (15 tokens a second
                    through 64 layers); its recomputation and backward together launch three times as much.
    replay_seconds  what a layer's forward adds in a captured chunk, however short: weights and sums of gradients are
                    read and written, kernels end unevenly (14,494, 16,138 and 17,187 tokens a second in chunks of
                    2,048, 4,096 and 8,192 differ by 28.8 ms a chunk of 64 layers, in 4 forwards' worth).
    link_bytes      between device and pinned host memory, each way.
    """

    matrix_flops: float = 780e12
    memory_bytes: float = 4.29e12
    passes_over_x: float = 40.0
    launch_seconds: float = 1.04e-3
    replay_seconds: float = 0.11e-3
    link_bytes: float = 55e9


@dataclass(frozen=True)
class Speed:
    """Seconds by tokens of a chunk: one layer's forward without a graph, and its forward with one and backward.

    recorded_* are the same in a chunk that is replayed as CUDA graphs (`Plan.graphs`). front and head are the seconds
    of one forward of what stands before and behind the layers, memo those that a layer's recomputation is spared
    where it was remembered (`Plan.memo_chunks`).
    """

    forward: Curve
    backward: Curve
    captured_forward: Curve
    captured_backward: Curve
    front: Curve
    head: Curve
    memo: Curve
    link_bytes: float = Device.link_bytes


def estimate(cost: Cost, device: Device = Device(), lengths: Sequence[int] = (1, *LENGTHS, 4096, 8192, 16384)) -> Speed:
    """Seconds from a cost's arithmetic: matrix products and memory traffic one after the other, or else launches.

    Memos spare matrix products, as long as launches do not take longer than what remains; the memory traffic that they
    spare as well is left out (2.7% measured with 12 of 16 chunks of 16,384, and 3.1% the products alone).
    """

    def forward(tokens: int) -> float:
        flops = max(cost.layer.flops.at(tokens), 0) / device.matrix_flops
        return flops + device.passes_over_x * cost.x.at(tokens) / device.memory_bytes

    def curve(seconds: Callable[[int], float], floor: float = 0.0) -> Curve:
        return Curve(tuple((tokens, max(seconds(tokens), floor)) for tokens in lengths))

    def end(price_flops: Curve | None) -> Curve:
        return curve(lambda tokens: 2 * price_flops.at(tokens) / device.matrix_flops if price_flops else 0.0)

    def spared(tokens: int) -> float:
        beyond_launches = max(forward(tokens) - device.launch_seconds, 0.0)
        return min(cost.memo_flops * tokens / device.matrix_flops, 3 * beyond_launches)

    def captured(tokens: int) -> float:
        return forward(tokens) + device.replay_seconds

    return Speed(
        curve(forward, device.launch_seconds),
        curve(lambda tokens: 3 * forward(tokens), 3 * device.launch_seconds),
        curve(captured),
        curve(lambda tokens: 3 * captured(tokens)),
        end(cost.front.flops if cost.front else None),
        end(cost.head.flops if cost.head else None),
        curve(spared),
        device.link_bytes,
    )


def clock(
    layer: nn.Module,
    like_x: Tensor,
    cost: Cost,
    lengths: Sequence[int] = LENGTHS,
    repeats: int = 3,
    graphs: bool = True,
) -> Speed:
    """Time `layer` where it lives, on each length: the best of `repeats` bursts after those that warm up (and record).

    On a GPU bursts go on until it had time to raise its clock from idle.
    With `graphs` False, for a run that cannot have them, nothing is captured on a GPU.
    The ends, and what memos spare, are estimated from the time of the layer's own arithmetic.
    """
    cell = Cell([Piece.of_layer(layer)])
    plain = _clocked(cell, layer, like_x, lengths, repeats, captured=False)
    captured = _clocked(cell, layer, like_x, lengths, repeats, captured=True) if graphs and like_x.is_cuda else plain
    longest, seconds = plain[0].points[-1]
    flops_a_second = cost.layer.flops.at(longest) / seconds
    ends = estimate(cost, Device(matrix_flops=2 * flops_a_second))
    return Speed(*plain, *captured, ends.front, ends.head, ends.memo, ends.link_bytes)


def _clocked(
    cell: Cell, layer: nn.Module, like_x: Tensor, lengths: Sequence[int], repeats: int, *, captured: bool
) -> tuple[Curve, Curve]:
    """Seconds of forward without a graph, and of recomputation and backward."""
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
    """Seconds of one run. A GPU works off a burst of them, launching ahead of its work as it does in a step."""
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

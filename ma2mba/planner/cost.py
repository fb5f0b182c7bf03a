"""What one layer costs, found by running it: bytes that its graph holds, working sets, arithmetic.

A layer is run on a few lengths, alone, the way the engine will run it (`cell.Cell`): on the device that it lives on,
through whatever kernels it uses there, or on the meta device, which computes nothing. Longer chunks are predicted from
those lengths: every cost is a straight line in the tokens but for small changes of slope.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ma2mba.magc.cell import Cell, Piece, State, Values
from ma2mba.magc.gradients import GradientSums
from ma2mba.planner.meter import measuring

LENGTHS = (256, 512, 1024, 2048)

Inputs = Callable[[int], tuple[Values, list[State]]]


@dataclass(frozen=True)
class Curve:
    """Straight lines through measured (tokens, value) points, the first and the last line extended, never below 0."""

    points: tuple[tuple[int, float], ...]

    def at(self, tokens: float) -> float:
        if len(self.points) == 1:
            return self.points[0][1]
        i = min(max(bisect_left(self.points, (tokens,)), 1), len(self.points) - 1)
        (low, a), (high, b) = self.points[i - 1], self.points[i]
        return max(a + (b - a) * (tokens - low) / (high - low), 0.0)

    def __post_init__(self) -> None:
        if not self.points or any(one >= next_one for (one, _), (next_one, _) in pairwise(self.points)):
            raise ValueError(f"the points {self.points} must be at least one, with growing numbers of tokens")


@dataclass(frozen=True)
class Price:
    """What a part of a cell costs, by the number of its tokens. Bytes do not count its inputs, but for `inputs`.

    inputs    bytes of the values that go in.
    saved     bytes that live between its forward with a graph and its backward: saved tensors and outputs.
    forward   most bytes during a forward without a graph, the outputs included.
    backward  most bytes from a forward with a graph to the end of its backward, gradients included.
    flops     multiply-adds of a forward times two, in matrix products.
    gradients bytes of its parameters' gradients that a cell holds until all of its backward is done; those that
              operations add to the engine's sums themselves (`cell.GradientSums`) are none.
    weights   bytes of its trained parameters.
    sums      bytes of the engine's sums of their gradients (fp32, or wider).
    """

    inputs: Curve
    saved: Curve
    forward: Curve
    backward: Curve
    flops: Curve
    gradients: int
    weights: int
    sums: int


@dataclass(frozen=True)
class Cost:
    """A model as the planner sees it: `layers` equal layers and what stands before and behind them.

    x         bytes of what flows from layer to layer, by tokens.
    state     bytes of one layer's recurrent state; `state_tensors` their sizes one by one.
    front     what makes x of a chunk, and head what makes a loss of x (`ma2mba.magc.stream`);
              both None for `ma2mba.magc.checkpoint`, where x and y are whole tensors.
    memo      bytes of what a layer leaves to spare work in its recomputation (`Plan.memo_chunks`), a token;
              `memo_flops` are the matrix products that it spares, a token.
    standing  on a GPU all sums of gradients are there from the beginning of backward (`cell.GradientSums`).
    """

    layer: Price
    layers: int
    x: Curve
    state_tensors: tuple[int, ...]
    front: Price | None = None
    head: Price | None = None
    memo: float = 0.0
    memo_flops: float = 0.0
    standing: bool = False

    @property
    def state(self) -> int:
        return sum(self.state_tensors)

    @property
    def sums(self) -> int:
        return self.layers * self.layer.sums + sum(end.sums for end in (self.front, self.head) if end)

    @property
    def weights(self) -> int:
        return self.layers * self.layer.weights + sum(end.weights for end in (self.front, self.head) if end)


def measure(
    layer: nn.Module,
    like_x: Tensor,
    layers: int,
    front: Price | None = None,
    head: Price | None = None,
    lengths: Sequence[int] = LENGTHS,
    standing: bool = False,
) -> Cost:
    """Price `layer`, one of `layers` equal ones, on like_x's device (meta: nothing is computed).

    like_x (batch, any, width) has the batch, width and dtype of what flows through the layers. `standing` on the meta
    device: as a GPU's engine keeps the sums of gradients.
    """
    state = tuple(layer.initial_state(like_x))  # type: ignore[operator]

    def inputs(tokens: int) -> tuple[Values, list[State]]:
        return (like_x.new_zeros(like_x.shape[0], tokens, like_x.shape[2]),), [state]

    x_bytes = like_x.element_size() * like_x.shape[0] * like_x.shape[2]
    price_of_layer = price(Piece.of_layer(layer), inputs, lengths)
    x = Curve(((0, 0.0), (1, float(x_bytes))))
    states = tuple(t.nbytes for t in state)
    nbytes, flops = _memo(Piece.of_layer(layer), *inputs(max(lengths)))
    memo, memo_flops = nbytes / max(lengths), flops / max(lengths)
    return Cost(price_of_layer, layers, x, states, front, head, memo, memo_flops, standing or like_x.is_cuda)


@torch.no_grad()
def _memo(piece: Piece, values: Values, states: list[State]) -> tuple[int, int]:
    """Bytes of what a layer remembers, and the flops that its forward is spared by them."""
    with _counting_products() as whole:
        memo = piece.remember(values, states)[2]
    if not isinstance(memo, Tensor):
        return 0, 0
    with _counting_products() as rest:
        piece.recall(values, states, memo)
    return memo.nbytes, whole.get_total_flops() - rest.get_total_flops()


def price(piece: Piece, inputs: Inputs, lengths: Sequence[int] = LENGTHS) -> Price:
    """Run a piece on each length. `inputs(tokens)` makes its values and its layers' states, zeros will do."""
    runs = {tokens: _run(piece, *inputs(tokens)) for tokens in sorted(lengths)}
    columns = [tuple((tokens, float(run[i])) for tokens, run in runs.items()) for i in range(5)]
    given, saved, forward, backward, flops = map(Curve, columns)
    unique = dict.fromkeys(piece.parameters)
    weights = sum(p.nbytes for p in unique)
    sums = sum(p.numel() * max(4, p.element_size()) for p in unique)
    gradients = max(run[5] for run in runs.values())
    return Price(given, saved, forward, backward, flops, gradients, weights, sums)


class _Handed(GradientSums):
    """Counts the gradients that come; their sums are accounted for by themselves."""

    nbytes = 0

    def add(self, parameter: nn.Parameter, gradient: Tensor | None) -> None:
        self.nbytes += 0 if gradient is None else gradient.nbytes


def _run(piece: Piece, values: Values, states: list[State]) -> tuple[int, int, int, int, int, int]:
    """Bytes of the inputs, saved, of forward and of backward, flops, and bytes of gradients, of one run."""
    sink = _Handed(piece.parameters)
    with sink:
        return _measured(Cell([piece]), values, states, sink)


def _measured(cell: Cell, values: Values, states: list[State], sink: _Handed) -> tuple[int, int, int, int, int, int]:
    device = _device(values, states)
    if device.type == "cuda":  # kernels are compiled and tuned at their first use, which takes memory of its own
        cell.backward(cell.residual(values, states), *_seeds(cell, values, states), sink)
        sink.nbytes = 0
    with _counting_products() as counter, measuring(device) as meter, torch.no_grad():
        kept = cell.run(values, states)
        forward = meter.peak
    del kept
    saved = _saved(cell, values, states, device)
    d_values, d_states = _seeds(cell, values, states)
    residual = cell.residual(values, states)
    with measuring(device) as meter:
        cell.backward(residual, d_values, d_states, sink)
    given = sum(t.nbytes for t in values)
    return given, saved, forward, meter.peak, counter.get_total_flops(), sink.nbytes


def _counting_products() -> FlopCounterMode:
    """torch 2.11 counts no product whose sum has a dtype of its own: that argument is in the way of its formula's."""

    def add_product(_: Any, a: Sequence[int], b: Sequence[int], *dtype: Any, **others: Any) -> int:
        return 2 * a[0] * a[1] * b[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm: add_product})


def _saved(cell: Cell, values: Values, states: list[State], device: torch.device) -> int:
    """Bytes that are alive after a forward with a graph, besides parameters and inputs."""
    values = tuple(t.detach().requires_grad_(t.is_floating_point()) for t in values)
    states = [tuple(t.detach().requires_grad_() for t in state) for state in states]
    with measuring(device) as meter, torch.enable_grad():
        kept = cell.run(values, states)
        live = meter.live
    del kept
    return live


def _seeds(
    cell: Cell, values: Values, states: list[State]
) -> tuple[tuple[Tensor | None, ...], list[tuple[Tensor | None, ...]]]:
    """Gradients for what the cell gives, as backward will get them."""
    with torch.no_grad(), measuring(_device(values, states)):
        values_out, states_out = cell.run(values, states)

    def seed(tensor: Tensor) -> Tensor | None:
        return torch.ones_like(tensor) if tensor.is_floating_point() else None

    return tuple(map(seed, values_out)), [tuple(map(seed, state)) for state in states_out]


def _device(values: Values, states: Sequence[State]) -> torch.device:
    return next(t.device for t in (*values, *(t for state in states for t in state)))

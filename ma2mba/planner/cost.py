"""What a model costs, layer by layer: bytes and arithmetic by the number of tokens. Pure arithmetic.

`measure.py` finds these numbers. The layers need not be alike; equal neighbours are stored once, with
their count.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Curve:
    """A function of the tokens, from measured (tokens, value) points: linear between two neighbouring points.

    Outside the points it continues the first or the last line, but never below 0. A single point is a constant.
    """

    points: tuple[tuple[int, float], ...]

    def at(self, tokens: float) -> float:
        if len(self.points) == 1:
            return self.points[0][1]
        i = min(max(bisect_left(self.points, (tokens,)), 1), len(self.points) - 1)
        (low, a), (high, b) = self.points[i - 1], self.points[i]
        return max(a + (b - a) * (tokens - low) / (high - low), 0.0)

    def __post_init__(self) -> None:
        if not self.points or any(one >= next_one for (one, _), (next_one, _) in pairwise(self.points)):
            raise ValueError(f"the points are {self.points}. Give at least one, with growing numbers of tokens")


@dataclass(frozen=True)
class Price:
    """The cost of one piece of a cell, by the number of its tokens. Bytes exclude its inputs, except in `inputs`.

    inputs     bytes of the values that go in.
    saved      bytes that live between a forward with a graph and its backward: saved tensors and outputs.
    forward    peak bytes of a forward without a graph, outputs included.
    backward   peak bytes from the start of a forward with a graph to the end of its backward, gradients included.
    flops      floating-point operations of a forward's matrix products (two for a multiply-add).
    gradients  bytes of parameters' gradients that a cell holds until its whole backward is done. Gradients that
               operations add to the engine's sums themselves (`magc.gradients`) do not count.
    weights    bytes of the trained parameters.
    sums       bytes of the engine's sums of their gradients (fp32 or wider).
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
class LayerPrice(Price):
    """The cost of a layer.

    state       bytes of its recurrent state.
    memo        bytes a token of what it keeps to save work in its recomputation (`Plan.memo_chunks`).
    memo_flops  floating-point operations a token that the memo saves.
    """

    state: int
    memo: float = 0.0
    memo_flops: float = 0.0


class Stack:
    """Layers that follow each other, as runs of equal ones: (layer, count) pairs in the order of forward."""

    def __init__(self, runs: tuple[tuple[LayerPrice, int], ...]):
        self.runs = runs
        self.depth = sum(count for _, count in runs)
        self.state = sum(count * layer.state for layer, count in runs)
        self.gradients = sum(count * layer.gradients for layer, count in runs)
        self.weights = sum(count * layer.weights for layer, count in runs)
        self.sums = sum(count * layer.sums for layer, count in runs)
        self.memo = sum(count * layer.memo for layer, count in runs)

    def saved(self, tokens: float) -> float:
        """Return the bytes that live between a forward with a graph and its backward."""
        return sum(count * layer.saved.at(tokens) for layer, count in self.runs)

    def forward(self, tokens: float, x: float) -> float:
        """Return the peak bytes of a forward without a graph over an input of x bytes: the states so far stay."""
        states = accumulate(count * layer.state for layer, count in self.runs)
        return max(layer.forward.at(tokens) + x + state for (layer, _), state in zip(self.runs, states, strict=True))

    def backward(self, tokens: float, x: float) -> Iterator[tuple[int, float]]:
        """Yield (layer, bytes) for each layer at which backward may peak, the last layer first.

        When backward runs layer j, the layers before j hold what they saved, and the layers behind j the gradients
        of their parameters and of their states. Along a run both are linear in j, so that the peak is at an end
        of a run.
        """
        saved = [0.0, *accumulate(count * layer.saved.at(tokens) for layer, count in self.runs)]
        first, behind = self.depth, 0
        for (layer, count), before in zip(reversed(self.runs), reversed(saved[:-1]), strict=True):
            first -= count
            own, done = layer.backward.at(tokens) + x, layer.gradients + layer.state
            yield first + count - 1, (count - 1) * layer.saved.at(tokens) + own + before + behind
            if count > 1:
                yield first, (count - 1) * done + own + before + behind
            behind += count * done


def runs_of(layers: Sequence[T]) -> tuple[tuple[T, int], ...]:
    """Return (layer, count) for each run of equal layers."""
    return tuple((layer, len(list(run))) for layer, run in groupby(layers))


class LayerGroups:
    """The layers in groups of `size`, as a plan cuts them. Equal groups share one `Stack`.

    before, behind  for each group, the bytes of the states of the layers before and behind the group.
    sums_behind     for each group, the bytes of the sums of gradients of the layers behind the group.
    """

    def __init__(self, layers: Sequence[LayerPrice], size: int):
        stacks: dict[tuple[tuple[LayerPrice, int], ...], Stack] = {}
        cut = [runs_of(layers[start : start + size]) for start in range(0, len(layers), size)]
        self.groups = [stacks.setdefault(runs, Stack(runs)) for runs in cut]
        states = [0, *accumulate(group.state for group in self.groups)]
        sums = [0, *accumulate(group.sums for group in self.groups)]
        self.before = states[:-1]
        self.behind = [states[-1] - state for state in states[1:]]
        self.sums_behind = [sums[-1] - total for total in sums[1:]]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, g: int) -> Stack:
        return self.groups[g]

    @cached_property
    def edges(self) -> list[int]:
        """The groups at which memory may peak, in the order of backward.

        Along a run of equal groups memory is linear in the group's number: it peaks at an end of the run. The first
        group and the last do not belong to a run, because the front and the head belong to them.
        """
        last = len(self.groups) - 1
        kinds = [(0 < g < last, g == last, id(group)) for g, group in enumerate(self.groups)]
        inner = [g for g in range(1, last) if kinds[g] != kinds[g - 1] or kinds[g] != kinds[g + 1]]
        return sorted({0, last, *inner}, reverse=True)


@dataclass(frozen=True)
class Cost:
    """A model as the planner sees it: its layers, what is before them (front) and what is behind them (head).

    layers           one price for each layer, in the order of forward.
    x                bytes of what flows from layer to layer, by tokens.
    front            makes x of a chunk. head makes a loss of x (`ma2mba.magc.Streamer`). Both are None for
                     `ma2mba.magc.checkpoint`, where x and y are whole tensors.
    persistent_sums  all sums of gradients exist from the start of backward, as on a GPU (`magc.gradients`).
    """

    layers: tuple[LayerPrice, ...]
    x: Curve
    front: Price | None = None
    head: Price | None = None
    persistent_sums: bool = False
    _groups: dict[int, LayerGroups] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def stack(self) -> Stack:
        """All layers."""
        return Stack(runs_of(self.layers))

    def groups(self, size: int) -> LayerGroups:
        """Return the layers in groups of `size`."""
        if size not in self._groups:
            self._groups[size] = LayerGroups(self.layers, size)
        return self._groups[size]

    @property
    def sums(self) -> int:
        return self.stack.sums + sum(end.sums for end in (self.front, self.head) if end)

    @property
    def weights(self) -> int:
        return self.stack.weights + sum(end.weights for end in (self.front, self.head) if end)

"""The memory and the time of a plan, from the cost of its layers: a walk over the moments at which memory may peak.

What lives when is read off the engine (`cell.py`, `layers.py`, `scan.py`): backward holds most, at a group's edges.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil

from ma2mba.magc.cost import Cost
from ma2mba.magc.plan import Plan
from ma2mba.magc.speed import Speed

SUMS, LAYER_AXIS, SEQUENCE_AXIS, CELL, FRONT, LOSS = (
    "gradient sums",
    "layer checkpoints",
    "state checkpoints",
    "cell",
    "front",
    "loss",
)
Parts = dict[str, float]


@dataclass(frozen=True)
class Sequence:
    """What one forward and backward sees.

    tokens       of the longest row of a micro-batch (the cost holds the number of rows).
    unit         chunks end at multiples of so many tokens where they can (a frame's).
    front_tokens at most so many tokens of a chunk are the front's work (come from frames); None: all may.
    loss_tokens  at most so many tokens of a chunk take part in the loss; None: all may.
    """

    tokens: int
    unit: int = 1
    front_tokens: int | None = None
    loss_tokens: int | None = None

    def chunk(self, plan: Plan) -> int:
        """Tokens of the plan's whole chunks."""
        if self.tokens <= plan.chunk_tokens:
            return self.tokens
        return plan.chunk_tokens // self.unit * self.unit or plan.chunk_tokens


@dataclass(frozen=True)
class Prediction:
    """Bytes by part at the moment of the peak, and the seconds of a step's forward and backward."""

    plan: Plan
    device: dict[str, int]
    host: dict[str, int]
    seconds: float
    moment: str = field(compare=False)

    @property
    def device_bytes(self) -> int:
        return sum(self.device.values())

    @property
    def host_bytes(self) -> int:
        return sum(self.host.values())


def predict(
    cost: Cost,
    speed: Speed,
    sequence: Sequence,
    plan: Plan,
    device_base: dict[str, int] | None = None,
    host_base: dict[str, int] | None = None,
) -> Prediction:
    """Peak memory and time. The bases are what lives all the time: weights, gradients, optimizer."""
    shape = _Shape(cost, sequence, plan)
    moments = shape.sequence_nesting() if plan.nesting == "sequence" else shape.layer_nesting()
    name, parts = max(moments, key=lambda moment: sum(moment[1].values()))
    device = {**(device_base or {}), **{part: round(size) for part, size in parts.items()}}
    stash = sum(map(_pinned, cost.state_tensors)) * cost.layers * shape.chunks if plan.stash == "host" else 0
    host = {**(host_base or {}), SEQUENCE_AXIS: stash}
    return Prediction(plan, device, host, seconds(cost, speed, sequence, plan), name)


def seconds(cost: Cost, speed: Speed, sequence: Sequence, plan: Plan) -> float:
    """Forward, recomputation and backward of every chunk; states that move to the host hide behind them."""
    shape = _Shape(cost, sequence, plan)
    T, loss = shape.T, shape.loss_T
    again = shape.L - shape.last if plan.nesting == "sequence" else 0
    front = (4 + (plan.nesting == "sequence" and shape.G > 1)) * speed.front.at(shape.front_T)
    forward = shape.L * speed.forward.at(T) + again * speed.forward.at(T)
    chunk = forward + shape.L * speed.backward.at(T) + front + 4 * speed.head.at(loss)
    if plan.stash == "host":
        moved = 2 * cost.state * shape.L / speed.link_bytes
        chunk += max(0.0, moved - chunk) + 0.01 * moved
    return chunk * sequence.tokens / T


class _Shape:
    """A plan's numbers on a sequence: L layers in G groups of `size`, n chunks of T tokens. All sizes in bytes."""

    def __init__(self, cost: Cost, sequence: Sequence, plan: Plan):
        self.cost, self.plan, self.tokens = cost, plan, sequence.tokens
        self.L, self.size = cost.layers, min(plan.group_layers, cost.layers)
        self.G = ceil(self.L / self.size)
        self.last = self.L - (self.G - 1) * self.size
        self.T = sequence.chunk(plan)
        self.chunks = ceil(sequence.tokens / self.T)
        self.loss_T = self.T if sequence.loss_tokens is None else min(self.T, sequence.loss_tokens)
        self.front_T = self.T if sequence.front_tokens is None else min(self.T, sequence.front_tokens)
        self.x, self.x_whole = cost.x.at(self.T), cost.x.at(sequence.tokens)
        self.chunk_inputs = cost.front.inputs.at(self.front_T) if cost.front else 0.0
        self.on_host = plan.stash == "host"
        self.streams = cost.head is not None

    def layers_of(self, group: int) -> int:
        return self.last if group == self.G - 1 else self.size

    def groups(self) -> list[int]:
        """The groups at which memory may peak, in the order of backward."""
        return sorted({self.G - 1, max(self.G - 2, 0), min(1, self.G - 1), 0}, reverse=True)

    def sequence_nesting(self) -> Iterator[tuple[str, Parts]]:
        states = self.cost.state * self.L
        for i in sorted({self.chunks - 1, max(self.chunks - 2, 0)}):
            newest = i == self.chunks - 1
            kept = states * (1 if i == 0 else 2) if self.on_host else states * (i + 1)
            d_states = 0 if newest else states
            for g in self.groups():
                behind = self.L - g * self.size - self.layers_of(g)
                given = self.cost.state * behind
                for name, cell in self.cell(g):
                    yield (
                        f"backward of chunk {i + 1} of {self.chunks}, group {g + 1} of {self.G}: {name}",
                        cell
                        | {
                            FRONT: cell[FRONT] + self.chunk_inputs,
                            SUMS: self.sums(behind) if newest else self.cost.sums,
                            LAYER_AXIS: g * self.x + self.ends(1 - (i + 1) / self.chunks),
                            SEQUENCE_AXIS: kept + d_states + given,
                        },
                    )
        yield from self.joined(0, states * (2 if self.on_host else self.chunks))

    def layer_nesting(self) -> Iterator[tuple[str, Parts]]:
        n, state = self.chunks, self.cost.state
        for g in self.groups():
            size = self.layers_of(g)
            behind = self.L - g * self.size - size
            for i in sorted({n - 1, max(n - 2, 0), 0}):
                here = size * (1 if i == 0 else 2) if self.on_host else size * (i + 1)
                before = g * self.size * (1 if self.on_host else n)
                after = behind + (0 if i == n - 1 else size)
                done = (n - 1 - i) / n if g > 0 or not self.streams else 0.0
                inputs = g + done + (g < self.G - 1) + (0 if self.streams else 3)
                for name, cell in self.cell(g):
                    yield (
                        f"backward of group {g + 1} of {self.G}, chunk {i + 1} of {n}: {name}",
                        cell
                        | {
                            FRONT: cell[FRONT] + (self.chunk_inputs if g == 0 else 0),
                            SUMS: self.sums(behind + (0 if i == n - 1 else size)),
                            LAYER_AXIS: inputs * self.x_whole,
                            SEQUENCE_AXIS: state * (before + here + after),
                        },
                    )
        yield from self.joined((self.G - 1) * self.x_whole, state * self.L * (2 if self.on_host else n))

    def cell(self, group: int) -> Iterator[tuple[str, Parts]]:
        """The working set of one cell's backward, at its last piece first."""
        layer, T, size = self.cost.layer, self.T, self.layers_of(group)
        head = self.cost.head if group == self.G - 1 else None
        front = self.cost.front if group == 0 else None
        saved, done = layer.saved.at(T), layer.gradients + self.cost.state
        one, d_x = layer.backward.at(T), self.x
        front_saved = front.saved.at(self.front_T) if front else 0.0
        head_done = float(head.gradients) if head else 0.0
        if head:
            yield "loss", {CELL: size * saved, LOSS: head.backward.at(self.loss_T), FRONT: front_saved}
        yield "its last layer", {CELL: (size - 1) * saved + one + d_x, LOSS: head_done, FRONT: front_saved}
        yield "its first layer", {CELL: (size - 1) * done + one + d_x, LOSS: head_done, FRONT: front_saved}
        if front:
            yield "front", {CELL: size * done + d_x, LOSS: head_done, FRONT: front.backward.at(self.front_T)}

    def sums(self, layers: int) -> float:
        """The sums of gradients when backward has passed so many layers of the first chunk it meets."""
        head = self.cost.head.sums if self.cost.head and layers else 0
        return layers * self.cost.layer.sums + head

    def ends(self, done: float) -> float:
        """Whole tensors of `checkpoint`: x, y, the gradient of y, and what is done of the gradient of x."""
        return 0.0 if self.streams else (3 + done) * self.x_whole

    def joined(self, inputs: float, states: float) -> Iterator[tuple[str, Parts]]:
        """`checkpoint` joins the chunks of y after forward and those of x's gradient after backward."""
        if not self.streams:
            yield "joining y", {LAYER_AXIS: 3 * self.x_whole + inputs, SEQUENCE_AXIS: states + self.cost.state * self.L}
            yield "joining the gradient of x", {SUMS: self.cost.sums, LAYER_AXIS: 5 * self.x_whole}


def _pinned(size: int) -> int:
    """Bytes that PyTorch takes for a pinned tensor: the next power of two."""
    return 1 << (size - 1).bit_length() if size else 0

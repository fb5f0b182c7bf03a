"""A plan's numbers on a sequence: groups, chunks, what is kept, how long a step takes."""

from dataclasses import dataclass, replace
from math import ceil

from ma2mba.magc.plan import Plan
from ma2mba.planner.cost import Cost
from ma2mba.planner.speed import Speed


@dataclass(frozen=True)
class Workload:
    """What one forward and backward sees.

    tokens       of the longest row of a micro-batch (the cost holds the number of rows).
    unit         chunks end at multiples of so many tokens where they can (a frame's).
    front_tokens at most so many tokens of a chunk are the front's work (come from frames); None: all may.
    loss_tokens  at most so many tokens of a chunk take part in the loss; None: all may.
    ragged       chunks may end anywhere, or sequences of other lengths come too: the last chunk may have any length.
    ranks        so many share a sequence: all these numbers are those of one's part, while `Plan.chunk_tokens` counts
                 the tokens of all.
    """

    tokens: int
    unit: int = 1
    front_tokens: int | None = None
    loss_tokens: int | None = None
    ragged: bool = False
    ranks: int = 1

    def rank_share(self, ranks: int) -> "Workload":
        """One rank's part of this sequence, which so many share."""
        tokens = -(-self.tokens // ranks)
        front = None if self.front_tokens is None else -(-self.front_tokens // ranks)
        loss = None if self.loss_tokens is None else min(self.loss_tokens, tokens)
        return replace(self, tokens=tokens, front_tokens=front, loss_tokens=loss, ranks=ranks)

    def chunk(self, plan: Plan) -> int:
        """Tokens of the plan's whole chunks."""
        return min(self.whole(plan), self.tokens)

    def whole(self, plan: Plan) -> int:
        """The same for a sequence that is longer than that."""
        own = max(1, plan.chunk_tokens // self.ranks)
        return own // self.unit * self.unit or own


class Layout:
    """A plan's numbers on a sequence: L layers in G groups of `size`, n chunks of T tokens, the last of `rest`; states
    are kept every `every` chunks. All sizes in bytes."""

    def __init__(self, cost: Cost, workload: Workload, plan: Plan):
        self.cost, self.plan, self.workload, self.tokens = cost, plan, workload, workload.tokens
        self.L, self.size = cost.layers, min(plan.group_layers, cost.layers)
        self.G = ceil(self.L / self.size)
        self.T = workload.chunk(plan)
        self.chunks = ceil(workload.tokens / self.T)
        self.rest = workload.tokens - (self.chunks - 1) * self.T
        self.every = min(plan.stash_every, self.chunks)
        self.on_host, self.streams = plan.stash == "host", cost.head is not None
        self.in_order = plan.nesting == "sequence"
        self.captured = plan.graphs and workload.whole(plan) == self.T
        self.remembered = min(plan.memo_chunks, self.chunks - 1)
        self.memos = self.L * cost.memo * self.T * self.remembered
        self.cells: dict[tuple[bool, bool, int], list[tuple[str, dict[str, float]]]] = {}
        self.x_whole, self.states = cost.x.at(workload.tokens), cost.state * cost.layers

    @property
    def boundaries(self) -> int:
        """The most states at chunks' ends that are kept at one time."""
        return ceil(self.chunks / self.every) + self.every - 1

    def layers_of(self, group: int) -> int:
        return self.L - (self.G - 1) * self.size if group == self.G - 1 else self.size

    def groups(self) -> list[int]:
        """The groups at which memory may peak, in the order of backward."""
        return sorted({self.G - 1, max(self.G - 2, 0), min(1, self.G - 1), 0}, reverse=True)

    def backward_chunks(self) -> list[int]:
        """The chunks at which memory may peak: the last two, the last of the whole segment before, with "layer" nesting
        the first."""
        n = self.chunks
        whole = (n - 1) // self.every * self.every - 1
        return sorted({n - 1, max(n - 2, 0), max(whole, 0), n - 1 if self.in_order else 0}, reverse=True)

    def tokens_of(self, chunk: int) -> int:
        return self.rest if chunk == self.chunks - 1 else self.T

    def kept(self, chunk: int) -> int:
        """How many states are on the device in the backward of a chunk, its own among them."""
        if self.on_host:
            return min(chunk + 1, 2 if self.every == 1 else 3)
        return chunk // self.every + chunk % self.every + 1

    def front_tokens(self, tokens: int) -> int:
        """Those of a chunk that come from frames; chunks that are captured may share frames with both neighbours."""
        most, unit = self.workload.front_tokens, self.workload.unit
        tokens += unit if self.captured and unit > 1 else 0
        return tokens if most is None else min(tokens, most)

    def loss_tokens(self, tokens: int) -> int:
        most = self.workload.loss_tokens
        return tokens if most is None else min(tokens, most)

    def chunk_inputs(self, tokens: int) -> float:
        return self.cost.front.inputs.at(self.front_tokens(tokens)) if self.cost.front else 0.0

    def seconds(self, speed: Speed) -> float:
        """Forward, recomputation and backward of every chunk; states that move to the host hide behind them."""
        n, last = self.chunks, self._passes(speed, self.rest)
        forward, backward, again = self._passes(speed, self.T)
        if self.plan.stash == "host":
            moved = 2 * self.states / speed.link_bytes
            backward += max(0.0, moved - forward - backward - again) + 0.01 * moved
        total = (n - 1) * (forward + backward + again) + sum(last)
        total -= self.remembered * self.L * speed.memo.at(self.T)
        if self.in_order:  # the last chunk's graph, or its groups' inputs, are kept from forward
            total -= last[2] if self.G > 1 else last[0]
        made_again = n - ceil(n / self.every) - ((n - 1) % self.every > 0)
        return total + made_again * forward

    def _passes(self, speed: Speed, tokens: int) -> tuple[float, float, float]:
        """Seconds of a chunk's forward, of its recomputation and backward, and of one more forward of all groups but
        the last, which a chain needs to make their inputs again."""
        captured = self.captured and tokens == self.T
        one = (speed.captured_forward if captured else speed.forward).at(tokens)
        three = (speed.captured_backward if captured else speed.backward).at(tokens)
        front, head = speed.front.at(self.front_tokens(tokens)), speed.head.at(self.loss_tokens(tokens))
        again = (self.L - self.layers_of(self.G - 1)) * one + front if self.in_order and self.G > 1 else 0.0
        return self.L * one + front + head, self.L * three + 3 * (front + head), again

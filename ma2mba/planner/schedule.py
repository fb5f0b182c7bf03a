"""A plan's numbers for one sequence: groups, chunks, what is kept, and how long a step takes."""

from dataclasses import dataclass, replace
from math import ceil

from ma2mba.magc.plan import Plan
from ma2mba.planner.cost import Cost
from ma2mba.planner.speed import Speed


@dataclass(frozen=True)
class Workload:
    """What one forward and backward processes.

    tokens        tokens of the longest row of a micro-batch (the cost contains the number of rows).
    unit          chunks end at multiples of this number of tokens where they can (the tokens of a frame).
    front_tokens  the most tokens of a chunk that are the front's work (come from frames); None: all of them.
    loss_tokens   the most tokens of a chunk that take part in the loss; None: all of them.
    ragged        chunks may end anywhere, or sequences of other lengths come too: the last chunk may have any length.
    ranks         ranks that share a sequence. All the numbers above are one rank's, while `Plan.chunk_tokens` counts
                  the tokens of all ranks.
    """

    tokens: int
    unit: int = 1
    front_tokens: int | None = None
    loss_tokens: int | None = None
    ragged: bool = False
    ranks: int = 1

    def rank_share(self, ranks: int) -> "Workload":
        """Return one rank's share when `ranks` ranks share this sequence."""
        tokens = -(-self.tokens // ranks)
        front = None if self.front_tokens is None else -(-self.front_tokens // ranks)
        loss = None if self.loss_tokens is None else min(self.loss_tokens, tokens)
        return replace(self, tokens=tokens, front_tokens=front, loss_tokens=loss, ranks=ranks)

    def chunk(self, plan: Plan) -> int:
        """Return the tokens of the plan's whole chunks."""
        return min(self.whole(plan), self.tokens)

    def whole(self, plan: Plan) -> int:
        """Return the tokens of the plan's whole chunks in a sequence that is longer than a chunk."""
        own = max(1, plan.chunk_tokens // self.ranks)
        return own // self.unit * self.unit or own


class Layout:
    """How a plan divides a workload: layers in G groups, and n chunks of T tokens, the last one of `rest` tokens.

    States are kept every `every` chunks. All sizes are in bytes.
    """

    def __init__(self, cost: Cost, workload: Workload, plan: Plan):
        self.cost, self.plan, self.workload = cost, plan, workload
        self.stack, self.groups = cost.stack, cost.groups(plan.group_layers)
        self.G = len(self.groups)
        self.T = workload.chunk(plan)
        self.chunks = ceil(workload.tokens / self.T)
        self.rest = workload.tokens - (self.chunks - 1) * self.T
        self.every = min(plan.stash_every, self.chunks)
        self.on_host, self.streams = plan.stash == "host", cost.head is not None
        self.in_order = plan.nesting == "sequence"
        self.captured = plan.graphs and workload.whole(plan) == self.T
        self.remembered = min(plan.memo_chunks, self.chunks - 1)
        self.memos = self.stack.memo * self.T * self.remembered
        self.cells: dict[tuple[bool, bool, int, int], list[tuple[str, dict[str, float]]]] = {}
        self.x_whole = cost.x.at(workload.tokens)

    @property
    def boundaries(self) -> int:
        """The most chunk ends at which states are kept at one time."""
        return ceil(self.chunks / self.every) + self.every - 1

    def backward_chunks(self) -> list[int]:
        """Return the chunks at which memory may peak.

        These are the last two, the last one of the last whole segment before them, and with "layer" nesting the first.
        """
        n = self.chunks
        whole = (n - 1) // self.every * self.every - 1
        return sorted({n - 1, max(n - 2, 0), max(whole, 0), n - 1 if self.in_order else 0}, reverse=True)

    def tokens_of(self, chunk: int) -> int:
        return self.rest if chunk == self.chunks - 1 else self.T

    def kept(self, chunk: int) -> int:
        """Return how many chunks' states are on the device in the backward of a chunk, this chunk's included."""
        if self.on_host:
            return min(chunk + 1, 2 if self.every == 1 else 3)
        return chunk // self.every + chunk % self.every + 1

    def front_tokens(self, tokens: int) -> int:
        """Return how many of a chunk's tokens may come from frames.

        A captured chunk may share a frame with each of its neighbours.
        """
        most, unit = self.workload.front_tokens, self.workload.unit
        tokens += unit if self.captured and unit > 1 else 0
        return tokens if most is None else min(tokens, most)

    def loss_tokens(self, tokens: int) -> int:
        most = self.workload.loss_tokens
        return tokens if most is None else min(tokens, most)

    def chunk_inputs(self, tokens: int) -> float:
        return self.cost.front.inputs.at(self.front_tokens(tokens)) if self.cost.front else 0.0

    def seconds(self, speed: Speed) -> float:
        """Return the seconds of every chunk's forward, recomputation and backward.

        States move to the host while chunks are computed.
        """
        n, last = self.chunks, self._passes(speed, self.rest)
        forward, backward, again = self._passes(speed, self.T)
        if self.plan.stash == "host":
            moved = 2 * self.stack.state / speed.link_bytes
            backward += max(0.0, moved - forward - backward - again) + 0.01 * moved
        total = (n - 1) * (forward + backward + again) + sum(last)
        total -= speed.saved_by_memos(self.T, self.remembered)
        if self.in_order:  # the last chunk's graph, or the inputs of its groups, are kept from forward
            total -= last[2] if self.G > 1 else last[0]
        recomputed = n - ceil(n / self.every) - ((n - 1) % self.every > 0)
        return total + recomputed * forward

    def _passes(self, speed: Speed, tokens: int) -> tuple[float, float, float]:
        """Return the seconds of a chunk's forward, of its recomputation and backward, and of rebuilding groups' inputs.

        With several groups in sequence nesting, one more forward of all groups but the last rebuilds their inputs.
        """
        captured = self.captured and tokens == self.T
        front, head = speed.front.at(self.front_tokens(tokens)), speed.head.at(self.loss_tokens(tokens))
        all_but_last = len(self.cost.layers) - self.groups[self.G - 1].depth
        again = speed.forward(tokens, captured, all_but_last) + front if self.in_order and self.G > 1 else 0.0
        forward = speed.forward(tokens, captured, len(self.cost.layers)) + front + head
        return forward, speed.backward(tokens, captured) + 3 * (front + head), again

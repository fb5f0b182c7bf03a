"""Which samples a step sees, and which rank sees them when: a pure function of the index, the seed and the position.

N samples of the dataset.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ma2mba.data.buckets import cut, pack

Order = Literal["shuffled", "length"]
LENGTH_MIXING = math.e
"""Order "length" mixes samples whose lengths differ by less than this factor."""


@dataclass(frozen=True)
class Position:
    """A place in training: the epoch, and how many samples of its order have been used."""

    epoch: int = 0
    cursor: int = 0


@dataclass(frozen=True)
class StepPlan:
    """One global batch: `micro_batches[rank][micro_step]` lists samples. The totals are over all ranks."""

    micro_batches: list[list[list[int]]]
    targets: int
    tokens: int
    frames: int
    epoch: int
    after: Position


def padded_tokens(plan: StepPlan, length_N: np.ndarray) -> list[int]:
    """How many tokens each rank (or group of ranks that share samples) computes on in a step, padding included."""
    return [sum(len(micro) * int(length_N[micro].max()) for micro in rank) for rank in plan.micro_batches]


@dataclass(frozen=True)
class Group:
    """Samples that are drawn `weight` times as often as those of a group of weight 1, which come once an epoch."""

    samples: np.ndarray
    weight: float = 1.0

    @property
    def draws(self) -> int:
        """Samples of an epoch."""
        return max(1, round(self.weight * len(self.samples)))

    def drawn(self, seed: int, number: int, epoch: int) -> np.ndarray:
        """Those of an epoch: the next `draws` of permutations of the group, one after the other."""
        size, first = len(self.samples), epoch * self.draws
        passes = range(first // size, -(-(first + self.draws) // size))
        orders = [np.random.default_rng((seed, number, turn, 1)).permutation(self.samples) for turn in passes]
        return np.concatenate(orders)[first - passes[0] * size :][: self.draws]


class Sampler:
    """Deals global batches of `global_batch` samples to `ranks`, each in micro-batches of `micro_batch` samples.

    With `micro_batch_tokens` a rank has as many micro-batches as without, but of as many samples as fill about the same
    number of padded tokens, never more than that; `micro_batch` is then their mean.
    `groups` says how often which samples are drawn (by default each once an epoch).
    Order "shuffled" is a permutation an epoch. Order "length" is one epoch for the whole run, in which every sample
    comes `passes` times: from short samples to long ones, mixed with those of similar length (up to e times longer), as
    a batch of equals teaches little. An epoch's last batch is filled up from the start of the same epoch's order. A
    step's samples do not depend on `ranks`.
    Raises ValueError unless `global_batch` is a multiple of `micro_batch * ranks`.
    """

    def __init__(
        self,
        length_N: np.ndarray,
        targets_N: np.ndarray,
        frames_N: np.ndarray,
        *,
        global_batch: int,
        micro_batch: int,
        ranks: int = 1,
        seed: int = 0,
        order: Order = "shuffled",
        passes: int = 1,
        micro_batch_tokens: int | None = None,
        groups: Sequence[Group] | None = None,
    ):
        if global_batch % (micro_batch * ranks):
            raise ValueError(
                f"global_batch {global_batch} is not a multiple of micro_batch {micro_batch} * {ranks} ranks"
            )
        self.length_N, self.targets_N, self.frames_N = length_N, targets_N, frames_N
        self.global_batch, self.micro_batch, self.ranks = global_batch, micro_batch, ranks
        self.seed, self.order, self.passes = seed, order, passes
        self.micro_batch_tokens = micro_batch_tokens
        self.groups = list(groups or [Group(np.arange(len(length_N)))])
        self._orders: dict[int, np.ndarray] = {}

    @property
    def draws(self) -> int:
        """Samples of an epoch."""
        return sum(group.draws for group in self.groups)

    @property
    def steps(self) -> int:
        """Steps of `passes` passes over the samples."""
        whole = -(-self.draws // self.global_batch) * self.passes
        return -(-self.draws * self.passes // self.global_batch) if self.order == "length" else whole

    @property
    def micro_steps(self) -> int:
        return self.global_batch // (self.micro_batch * self.ranks)

    def tokens_until(self, steps: int) -> int:
        """About how many tokens the first `steps` steps of a run hold: exact with order "length", else by the mean."""
        samples = steps * self.global_batch
        if self.order == "length":
            return int(self.length_N[self.epoch_order(0)[:samples]].sum())
        return int(self.length_N.mean() * samples)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """The samples in the order of that epoch, or of all `passes` with order "length"."""
        if epoch not in self._orders:
            for old in sorted(self._orders)[:-1]:  # two are kept: reading ahead is in the next epoch first
                del self._orders[old]
            self._orders[epoch] = self._order_of(epoch)
        return self._orders[epoch]

    def chosen(self, at: Position) -> np.ndarray:
        """The samples of the step that begins at a position."""
        order_N = self.epoch_order(at.epoch)
        return order_N[np.arange(at.cursor, at.cursor + self.global_batch) % len(order_N)]

    def plan(self, at: Position) -> StepPlan:
        """The step that begins at a position: every position is reached directly, without the steps before it."""
        chosen = self.chosen(at)
        return StepPlan(
            micro_batches=self._deal(chosen),
            targets=int(self.targets_N[chosen].sum()),
            tokens=int(self.length_N[chosen].sum()),
            frames=int(self.frames_N[chosen].sum()),
            epoch=at.epoch,
            after=self._after(at),
        )

    def plans(self, at: Position) -> Iterator[StepPlan]:
        """The steps from a position on, without end."""
        while True:
            plan = self.plan(at)
            yield plan
            at = plan.after

    def micro_batches_needed(self, tokens: int, steps: int) -> int:
        """How many micro-batches of at most that many padded tokens the neediest of the first `steps` steps takes."""
        at, most = Position(), 0
        for _ in range(steps):
            most = max(most, len(cut(np.sort(self.length_N[self.chosen(at)])[::-1], tokens)))
            at = self._after(at)
        return most

    def _after(self, at: Position) -> Position:
        cursor = at.cursor + self.global_batch
        return Position(at.epoch, cursor) if cursor < len(self.epoch_order(at.epoch)) else Position(at.epoch + 1, 0)

    def _order_of(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng((self.seed, epoch))
        if self.order == "shuffled":
            return random.permutation(self._drawn(epoch))
        samples = np.concatenate([self._drawn(i) for i in range(self.passes)])
        mixed = np.log(self.length_N[samples]) + random.uniform(0, math.log(LENGTH_MIXING), len(samples))
        return samples[np.argsort(mixed, kind="stable")]

    def _drawn(self, epoch: int) -> np.ndarray:
        return np.sort(np.concatenate([group.drawn(self.seed, g, epoch) for g, group in enumerate(self.groups)]))

    def _deal(self, chosen: np.ndarray) -> list[list[list[int]]]:
        """Neighbours in length share a micro-batch; the largest first, each to the rank with room and fewest tokens."""
        by_length = chosen[np.argsort(-self.length_N[chosen], kind="stable")]
        micro_batches = [by_length[at].tolist() for at in self._cut(self.length_N[by_length])]
        costs = [len(samples) * int(self.length_N[samples[0]]) for samples in micro_batches]
        dealt: list[list[list[int]]] = [[] for _ in range(self.ranks)]
        tokens = [0] * self.ranks
        for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
            rank = min((r for r in range(self.ranks) if len(dealt[r]) < self.micro_steps), key=lambda r: (tokens[r], r))
            dealt[rank].append(micro_batches[i])
            tokens[rank] += costs[i]
        return dealt

    def _cut(self, length_N: np.ndarray) -> list[slice]:
        if self.micro_batch_tokens:
            return pack(length_N, self.ranks * self.micro_steps, self.micro_batch_tokens)
        return [slice(start, start + self.micro_batch) for start in range(0, len(length_N), self.micro_batch)]

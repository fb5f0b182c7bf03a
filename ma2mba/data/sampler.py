"""Choose the samples of each step and deal them to ranks: a pure function of the index, the seed and the position.

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
    """A position in the data: the epoch, and how many samples of this epoch have been used."""

    epoch: int = 0
    cursor: int = 0


@dataclass(frozen=True)
class StepPlan:
    """The samples of one step (a global batch).

    micro_batches  `micro_batches[rank][micro_step]` lists indices of samples
    targets        tokens that the loss is taken over, on all ranks
    tokens         text and visual tokens without padding, on all ranks
    frames         frames, on all ranks
    epoch          the epoch of the step
    after          the position of the next step
    """

    micro_batches: list[list[list[int]]]
    targets: int
    tokens: int
    frames: int
    epoch: int
    after: Position


def padded_tokens(plan: StepPlan, length_N: np.ndarray) -> list[int]:
    """Return how many padded tokens each rank computes on in a step. Ranks that share a sequence count as one."""
    return [sum(len(micro) * int(length_N[micro].max()) for micro in rank) for rank in plan.micro_batches]


@dataclass(frozen=True)
class WeightedSamples:
    """Indices of samples that an epoch draws `weight` times on average."""

    samples: np.ndarray
    weight: float = 1.0

    @property
    def draws(self) -> int:
        """How many of these samples an epoch draws, repeats included."""
        return max(1, round(self.weight * len(self.samples)))

    def drawn(self, seed: int, number: int, epoch: int) -> np.ndarray:
        """Return the samples of an epoch: the next `draws` elements of an endless series of permutations."""
        size, first = len(self.samples), epoch * self.draws
        passes = range(first // size, -(-(first + self.draws) // size))
        orders = [np.random.default_rng((seed, number, turn, 1)).permutation(self.samples) for turn in passes]
        return np.concatenate(orders)[first - passes[0] * size :][: self.draws]


class Sampler:
    """Plans the steps of a run: global batches of `global_batch` samples, dealt to `ranks` in micro-batches.

    micro_batch         samples of a micro-batch
    micro_batch_tokens  if given, the maximum of padded tokens of a micro-batch. A rank still has the same number of
                        micro-batches, but they have different numbers of samples; `micro_batch` is their mean.
    order "shuffled"    every epoch has its own permutation
    order "length"      the whole run is one epoch that draws every sample `passes` times, from short to long samples.
                        It mixes samples of similar length (up to e times longer): batches of equal samples teach less.
    mixture             how often which samples are drawn (default: each once per epoch)

    The last batch of an epoch is filled up from the start of the same epoch. The samples of a step do not depend on
    `ranks`. Raise ValueError unless `global_batch` is a multiple of `micro_batch * ranks`.
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
        mixture: Sequence[WeightedSamples] | None = None,
    ):
        if global_batch % (micro_batch * ranks):
            raise ValueError(
                f"global_batch {global_batch} is not a multiple of micro_batch {micro_batch} * {ranks} ranks"
            )
        self.length_N, self.targets_N, self.frames_N = length_N, targets_N, frames_N
        self.global_batch, self.micro_batch, self.ranks = global_batch, micro_batch, ranks
        self.seed, self.order, self.passes = seed, order, passes
        self.micro_batch_tokens = micro_batch_tokens
        self.mixture = list(mixture or [WeightedSamples(np.arange(len(length_N)))])
        self._orders: dict[int, np.ndarray] = {}

    @property
    def draws(self) -> int:
        """How many samples an epoch draws, repeats included."""
        return sum(weighted.draws for weighted in self.mixture)

    @property
    def steps(self) -> int:
        """How many steps `passes` passes over the samples take."""
        whole = -(-self.draws // self.global_batch) * self.passes
        return -(-self.draws * self.passes // self.global_batch) if self.order == "length" else whole

    @property
    def micro_steps(self) -> int:
        """How many micro-batches a rank has in a step."""
        return self.global_batch // (self.micro_batch * self.ranks)

    def tokens_until(self, steps: int) -> int:
        """Return the tokens of the first `steps` steps: exact with order "length", else estimated from the mean."""
        samples = steps * self.global_batch
        if self.order == "length":
            return int(self.length_N[self.epoch_order(0)[:samples]].sum())
        return int(self.length_N.mean() * samples)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Return the samples of an epoch in order; with order "length", the samples of all `passes`."""
        if epoch not in self._orders:
            for old in sorted(self._orders)[:-1]:  # keep two: the loader reads ahead into the next epoch
                del self._orders[old]
            self._orders[epoch] = self._order_of(epoch)
        return self._orders[epoch]

    def chosen(self, at: Position) -> np.ndarray:
        """Return the samples of the step at position `at`."""
        order_N = self.epoch_order(at.epoch)
        return order_N[np.arange(at.cursor, at.cursor + self.global_batch) % len(order_N)]

    def plan(self, at: Position) -> StepPlan:
        """Return the step at position `at`. It does not need the steps before it."""
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
        """Yield the steps from position `at` on, without end."""
        while True:
            plan = self.plan(at)
            yield plan
            at = plan.after

    def micro_batches_needed(self, tokens: int, steps: int) -> int:
        """Return how many micro-batches of at most `tokens` padded tokens the first `steps` steps need at most."""
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
        return np.sort(np.concatenate([weighted.drawn(self.seed, i, epoch) for i, weighted in enumerate(self.mixture)]))

    def _deal(self, chosen: np.ndarray) -> list[list[list[int]]]:
        """Deal samples to ranks in micro-batches of similar length.

        The largest micro-batch comes first. Each goes to the rank with the fewest tokens that has room for it.
        """
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

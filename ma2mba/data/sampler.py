"""Which samples a step sees, and which rank sees them when: a pure function of the index, the seed and the position.

N samples of the dataset.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

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


class Sampler:
    """Deals global batches of `global_batch` samples to `ranks`, each in micro-batches of `micro_batch` samples.

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
    ):
        if global_batch % (micro_batch * ranks):
            raise ValueError(
                f"global_batch {global_batch} is not a multiple of micro_batch {micro_batch} * {ranks} ranks"
            )
        self.length_N, self.targets_N, self.frames_N = length_N, targets_N, frames_N
        self.global_batch, self.micro_batch, self.ranks = global_batch, micro_batch, ranks
        self.seed, self.order, self.passes = seed, order, passes
        self._epoch_order: tuple[int, np.ndarray] | None = None

    @property
    def steps(self) -> int:
        """Steps of `passes` passes over the samples."""
        whole = -(-len(self.length_N) // self.global_batch) * self.passes
        return -(-len(self.length_N) * self.passes // self.global_batch) if self.order == "length" else whole

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
        """The samples in the order of that epoch: all N once, or `passes` times with order "length"."""
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            self._epoch_order = (epoch, self._order_of(epoch))
        return self._epoch_order[1]

    def plan(self, at: Position) -> StepPlan:
        """The step that begins at a position: every position is reached directly, without the steps before it."""
        order_N = self.epoch_order(at.epoch)
        chosen = order_N[np.arange(at.cursor, at.cursor + self.global_batch) % len(order_N)]
        cursor = at.cursor + self.global_batch
        return StepPlan(
            micro_batches=self._deal(chosen),
            targets=int(self.targets_N[chosen].sum()),
            tokens=int(self.length_N[chosen].sum()),
            frames=int(self.frames_N[chosen].sum()),
            epoch=at.epoch,
            after=Position(at.epoch, cursor) if cursor < len(order_N) else Position(at.epoch + 1, 0),
        )

    def plans(self, at: Position) -> Iterator[StepPlan]:
        """The steps from a position on, without end."""
        while True:
            plan = self.plan(at)
            yield plan
            at = plan.after

    def _order_of(self, epoch: int) -> np.ndarray:
        count = len(self.length_N)
        random = np.random.default_rng((self.seed, epoch))
        if self.order == "shuffled":
            return random.permutation(count)
        samples = np.tile(np.arange(count), self.passes)
        mixed = np.log(self.length_N[samples]) + random.uniform(0, math.log(LENGTH_MIXING), len(samples))
        return samples[np.argsort(mixed, kind="stable")]

    def _deal(self, chosen: np.ndarray) -> list[list[list[int]]]:
        """Neighbours in length share a micro-batch; the longest first, each to the rank with room and fewest tokens."""
        by_length = chosen[np.argsort(-self.length_N[chosen], kind="stable")]
        dealt: list[list[list[int]]] = [[] for _ in range(self.ranks)]
        tokens = [0] * self.ranks
        for start in range(0, len(by_length), self.micro_batch):
            samples = by_length[start : start + self.micro_batch].tolist()
            rank = min((r for r in range(self.ranks) if len(dealt[r]) < self.micro_steps), key=lambda r: (tokens[r], r))
            dealt[rank].append(samples)
            tokens[rank] += self.micro_batch * int(self.length_N[samples[0]])
        return dealt

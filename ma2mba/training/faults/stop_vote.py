"""Whether the ranks go on with a step or give it up, settled without a collective: any may be within a micro-batch.

A rank arrives where it would wait for the others in a collective of DeepSpeed. Only one that has not arrived there may
give the step up: as long as it has not, none goes on, so all can leave. Ranks that share a sequence exchange tensors in
every layer: they all leave before the chunk before which the first of them does.
"""

import time
from collections.abc import Callable, Iterator

from torch.distributed import PrefixStore, Store

SHORTEST_WAIT, LONGEST_WAIT, SHARE = 0.001, 0.05, 0.05
"""Seconds between two looks at the others, and the share of what it has waited that a rank waits on."""
ARRIVED, ASKED, GIVEN_UP, FAILED = "arrived", "asked", "given up", "failed"
PASSED, LEFT = "passed {}", "left {}"
"""How often the first rank of a group has gone on with the next chunk, and whether it has left."""


class LostRank(Exception):
    """Another rank has failed: it will not arrive."""


class StopVote:
    """Of `ranks` processes that share a store; one process alone needs none. All make theirs at the same time.

    group  of the ranks that share this rank's sequences, and the rank's place in it; None if nobody does.
    """

    def __init__(self, store: Store | None, ranks: int, group: int | None = None, place: int = 0):
        self._store = None if store is None else _apart(store, ranks)
        self._ranks, self._group, self._place = ranks, group, place
        self._arrivals = self._looks = 0

    def given_up(self, asks: bool) -> bool:
        """Whether this rank, which has not arrived, leaves the step: because it asks, or another does.

        Raises LostRank when a rank that it has to wait for has failed.
        """
        if self._store is None:
            return asks
        asked = self._store.add(ASKED, int(asks)) > 0
        if self._place:
            return self._left_with_the_first(self._store)
        if asked:
            self._store.add(GIVEN_UP, 1)
        if self._group is not None:
            self._store.add((LEFT if asked else PASSED).format(self._group), 1)
        return asked

    def arrive(self, asks: Callable[[], bool]) -> bool:
        """Wait until all ranks have arrived (True) or one has given the step up; `asks` may come true meanwhile.

        Raises LostRank when one has failed.
        """
        if self._store is None:
            return True
        self._arrivals += 1
        all_of_them, asked = self._ranks * self._arrivals, False
        self._store.add(ARRIVED, 1)
        for _ in self._looking(self._store):
            given_up = self._store.add(GIVEN_UP, 0)  # before the arrivals: it may be that all have, and one left later
            if self._store.add(ARRIVED, 0) >= all_of_them:
                break
            if given_up:
                return False
            if asks() and not asked:
                asked = self._store.add(ASKED, 1) > 0
        return True

    def fail(self) -> None:
        """Nobody need wait for this rank any more."""
        if self._store is not None:
            self._store.add(FAILED, 1)

    def _left_with_the_first(self, store: Store) -> bool:
        self._looks += 1
        for _ in self._looking(store):
            left = store.add(LEFT.format(self._group), 0)  # before the other, which it ends
            if store.add(PASSED.format(self._group), 0) >= self._looks:
                break
            if left:
                return True
        return False

    def _looking(self, store: Store) -> Iterator[None]:
        """Once at once, then now and then, until one has failed."""
        began = time.monotonic()
        while True:
            yield
            if store.add(FAILED, 0):
                raise LostRank("another rank has failed")
            time.sleep(min(max(SHORTEST_WAIT, SHARE * (time.monotonic() - began)), LONGEST_WAIT))


def _apart(store: Store, ranks: int) -> Store:
    """For one agreement alone: the n-th of every rank belong together."""
    made = store.add("ma2mba agreements", 1)
    return PrefixStore(f"ma2mba agreement {(made - 1) // ranks}", store)

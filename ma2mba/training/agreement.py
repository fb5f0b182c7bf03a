"""Whether the ranks finish a step or give it up, settled without a collective: any of them may be within a micro-batch.

A rank has arrived once it has computed its gradients and would wait for those of the others. Only one that has not
arrived may give the step up: as long as it has not, none goes on, so all can leave.
"""

import time
from collections.abc import Callable

from torch.distributed import Store

SHORTEST_WAIT, LONGEST_WAIT, SHARE = 0.001, 0.05, 0.05
"""Seconds between two looks at the others, and the share of what it has waited that a rank waits on."""
ARRIVED, ASKED, GIVEN_UP, FAILED = "ma2mba arrived", "ma2mba asked", "ma2mba given up", "ma2mba failed"


class LostRank(Exception):
    """Another rank has failed: it will not arrive."""


class Agreement:
    """Of `ranks` processes that share a store, all of them in the same step; one process alone needs none."""

    def __init__(self, store: Store | None, ranks: int):
        self._store, self._ranks, self._arrivals = store, ranks, 0

    def given_up(self, asks: bool) -> bool:
        """Whether this rank, which has not arrived, leaves the step: because it asks, or another does."""
        if self._store is None:
            return asks
        if asks:
            self._store.add(ASKED, 1)
        elif not self._store.add(ASKED, 0):
            return False
        self._store.add(GIVEN_UP, 1)
        return True

    def arrive(self, asks: Callable[[], bool]) -> bool:
        """Wait until all ranks have arrived (True) or one has given the step up; `asks` may come true meanwhile.

        Raises LostRank when one has failed.
        """
        if self._store is None:
            return True
        self._arrivals += 1
        all_of_them, began, asked = self._ranks * self._arrivals, time.monotonic(), False
        arrived = self._store.add(ARRIVED, 1)
        while arrived < all_of_them and not self._store.add(GIVEN_UP, 0):
            if self._store.add(FAILED, 0):
                raise LostRank("another rank has failed")
            if asks() and not asked:
                asked = self._store.add(ASKED, 1) > 0
            time.sleep(min(max(SHORTEST_WAIT, SHARE * (time.monotonic() - began)), LONGEST_WAIT))
            arrived = self._store.add(ARRIVED, 0)
        return arrived >= all_of_them

    def fail(self) -> None:
        """Nobody need wait for this rank any more."""
        if self._store is not None:
            self._store.add(FAILED, 1)

"""Ranks decide to finish a step or to give it up, without a collective: any rank may be inside a micro-batch.

A rank arrives at a point just before a collective of DeepSpeed, where ranks wait for each other. Only a rank that has
not arrived may give the step up. As long as one rank has not arrived, no rank has entered the collective, so all can
leave. Ranks that share a sequence exchange tensors in every layer: the first rank of their group decides, and all leave
before the same chunk.
"""

import time
from collections.abc import Callable, Iterator

from torch.distributed import PrefixStore, Store
from torch.distributed import distributed_c10d as c10d

from ma2mba.training.world import World

SHORTEST_WAIT, LONGEST_WAIT, SHARE = 0.001, 0.05, 0.05
"""Limits of the pause between two looks at the store, in seconds, and its share of the time waited so far."""
ARRIVED, ASKED, GIVEN_UP, FAILED = "arrived", "asked", "given up", "failed"
PASSED, LEFT = "passed {}", "left {}"
"""How many chunks the first rank of a group has started, and whether it has left."""


class LostRank(Exception):
    """Another rank has failed and will not arrive."""


class StopVote:
    """Coordinates `ranks` processes through a shared store. A single process needs no store.

    All ranks create their votes in the same order.
    group  number of the group of ranks that share this rank's sequences, None when ranks share none
    place  this rank's place in its group
    """

    def __init__(self, store: Store | None, ranks: int, group: int | None = None, place: int = 0):
        self._store = None if store is None else own_keys(store, ranks, "stop vote")
        self._ranks, self._group, self._place = ranks, group, place
        self._arrivals = self._looks = 0

    def given_up(self, asks: bool) -> bool:
        """Return True when this rank, which has not arrived, must leave the step: it `asks` for it, or another does.

        Raise LostRank when a rank that this one waits for has failed.
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
        """Wait until all ranks have arrived (return True), or one has given the step up (return False).

        `asks` is called while waiting: once it returns True, this rank asks the others to stop. Raise LostRank when a
        rank has failed.
        """
        if self._store is None:
            return True
        self._arrivals += 1
        everybody, asked = self._ranks * self._arrivals, False
        self._store.add(ARRIVED, 1)
        for _ in self._looks_at(self._store):
            # Read this before the arrivals: all may have arrived, and one may have left at a later point.
            given_up = self._store.add(GIVEN_UP, 0)
            if self._store.add(ARRIVED, 0) >= everybody:
                break
            if given_up:
                return False
            if asks() and not asked:
                asked = self._store.add(ASKED, 1) > 0
        return True

    def fail(self) -> None:
        """Tell the other ranks not to wait for this one."""
        if self._store is not None:
            self._store.add(FAILED, 1)

    def _left_with_the_first(self, store: Store) -> bool:
        self._looks += 1
        for _ in self._looks_at(store):
            left = store.add(LEFT.format(self._group), 0)  # read before PASSED, which does not grow after it
            if store.add(PASSED.format(self._group), 0) >= self._looks:
                break
            if left:
                return True
        return False

    def _looks_at(self, store: Store) -> Iterator[None]:
        """Yield at once, then after growing pauses. Raise LostRank when a rank has failed."""
        began = time.monotonic()
        while True:
            yield
            if store.add(FAILED, 0):
                raise LostRank("another rank has failed")
            time.sleep(min(max(SHORTEST_WAIT, SHARE * (time.monotonic() - began)), LONGEST_WAIT))


def build_vote(world: World) -> StopVote:
    """Return this rank's vote, over the store of the default process group. All ranks call it."""
    store = c10d._get_default_store() if world.size > 1 else None
    return StopVote(store, world.size, world.group if world.sequence > 1 else None, world.place)


def own_keys(store: Store, ranks: int, kind: str) -> Store:
    """Return a view of the store for one object of a kind: the n-th objects of all ranks share their keys."""
    number = store.add(f"ma2mba {kind}", 1)
    return PrefixStore(f"ma2mba {kind} {(number - 1) // ranks}", store)

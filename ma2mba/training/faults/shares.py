"""Tell rank 0 when every rank has written its share of a checkpoint.

This uses no collective, because training uses collectives meanwhile.
"""

import time

from torch.distributed import Store
from torch.distributed import distributed_c10d as c10d

from ma2mba.training.faults.stop_vote import LostRank, own_keys
from ma2mba.training.world import World

POLL_SECONDS = 0.02
FAILED, WRITTEN = "failed", "written {}"


class Shares:
    """This rank's view of which shares are written. A single process needs no store.

    All ranks create their objects in the same order. Any thread may call the methods: none of them blocks the store.
    """

    def __init__(self, store: Store | None, ranks: int):
        self._store = None if store is None else own_keys(store, ranks, "shares")
        self._ranks = ranks

    def written(self, step: int) -> None:
        """Tell rank 0 that this rank's share of the checkpoint of `step` is on disk."""
        if self._store is not None:
            self._store.add(WRITTEN.format(step), 1)

    def failed(self) -> None:
        """Tell rank 0 not to wait for this rank."""
        if self._store is not None:
            self._store.add(FAILED, 1)

    def wait(self, step: int) -> None:
        """Wait until all ranks have written their share. Raise LostRank if one of them has failed."""
        while self._store is not None and self._store.add(WRITTEN.format(step), 0) < self._ranks:
            if self._store.add(FAILED, 0):
                raise LostRank("another rank could not write its share of a checkpoint")
            time.sleep(POLL_SECONDS)


def build_shares(world: World) -> Shares:
    """Return this rank's view, over the store of the default process group. All ranks call it."""
    return Shares(c10d._get_default_store() if world.size > 1 else None, world.size)

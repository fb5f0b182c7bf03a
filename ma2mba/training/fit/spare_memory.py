"""The host memory that a plan leaves for snapshots of checkpoints."""

import psutil

from ma2mba.planner.memory import Host
from ma2mba.planner.predict import Prediction
from ma2mba.training.fit.fitting import HOST_SHARE, machine_of
from ma2mba.training.world import World, ZeroPolicy


def spare_host_bytes(world: World, policy: ZeroPolicy, prediction: Prediction) -> float:
    """Return the bytes of host memory that this rank may take besides what its plan needs.

    Other processes may have taken memory, and this rank has not taken yet all that its plan needs.
    """
    machine = machine_of(world, policy)
    share = machine.device_bytes if machine.one_memory else machine.host_bytes or 0.0
    planned = prediction.host_bytes + (prediction.device_bytes if machine.one_memory else 0)
    missing = max(0, planned - psutil.Process().memory_info().rss)
    return min(share - planned, HOST_SHARE * Host().free() / world.local_size - missing)

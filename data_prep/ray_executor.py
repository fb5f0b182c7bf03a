"""The one door to Ray: parts as its tasks, on all machines of a cluster."""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from data_prep.parts import Job, build_part
from ma2mba.errors import UserError
from ma2mba.video.pool import Task, build_parts

try:
    import ray
except ImportError as error:
    raise UserError('--executor ray: Ray is not installed here; pip install "ma2mba[ray]"') from error


def build_parts_on_ray(job: Job, tasks: list[Task], advance: Callable[[int, int], None], stall: float) -> None:
    """Build all parts, each in a task of one CPU that watches its decoder's process as a local build does.

    Joins the cluster that RAY_ADDRESS names, else one that runs on this machine, else starts one here. All machines
    must see `job.out` and the media under the same paths. A task whose machine dies is started again by Ray.
    Raises UserError as `build_parts` does.
    """
    ray.init(ignore_reinit_error=True, log_to_driver=False, configure_logging=False)
    remote = ray.remote(num_cpus=1, max_retries=5)(_build_one)
    waiting, running = deque(tasks), dict[Any, int]()
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    while waiting or running:
        while waiting and len(running) < most:
            task = waiting.popleft()
            running[remote.remote(job, task, stall)] = len(task[1])
        for ready in ray.wait(list(running))[0]:
            try:
                rejects = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, UserError) else error from None
            advance(running.pop(ready), rejects)


def _build_one(job: Job, task: Task, stall: float) -> int:
    """Build a part; returns its rejects."""
    total = 0

    def count(_: int, rejects: int) -> None:
        nonlocal total
        total += rejects

    build_parts(partial(build_part, job), job.memory, [task], 1, count, stall)
    return total

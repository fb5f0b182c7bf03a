"""Build shards as Ray tasks on all machines of a cluster. The only file that imports Ray."""

from collections import deque
from functools import partial
from typing import Any

from data_prep.shard import Job, build_shard
from ma2mba.errors import UserError
from ma2mba.video.pool import OnResult, Progress, Task, run_tasks

try:
    import ray
except ImportError as error:
    raise UserError('--executor ray: Ray is not installed. Run pip install "ma2mba[ray]"') from error


def run_on_ray(job: Job, tasks: list[Task], progress: Progress, on_result: OnResult, stall: float) -> None:
    """Build all shards, each in a Ray task of one CPU that watches its decoder's process as a local build does.

    Join the cluster that RAY_ADDRESS names, else a cluster that runs on this machine, else start one here. All machines
    must see `job.out` and the media under the same paths. Ray restarts the tasks of a machine that dies. Raise the same
    errors as `run_tasks`.
    """
    ray.init(ignore_reinit_error=True, log_to_driver=False, configure_logging=False)
    remote = ray.remote(num_cpus=1, max_retries=5)(_build_one)
    waiting, running = deque(tasks), dict[Any, Task]()
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    while waiting or running:
        while waiting and len(running) < most:
            task = waiting.popleft()
            running[remote.remote(job, task, stall)] = task
        for ready in ray.wait(list(running))[0]:
            try:
                rejects = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, UserError | OSError) else error from None
            task = running.pop(ready)
            on_result(task, rejects)
            progress(len(task.items))


def _build_one(job: Job, task: Task, stall: float) -> int:
    """Build a shard in one watched worker and return the number of rejects."""
    results: list[int] = []
    run_tasks(
        partial(build_shard, job),
        [task],
        workers=1,
        memory=job.memory,
        progress=lambda _: None,
        on_result=lambda _, rejects: results.append(rejects),
        stall=stall,
    )
    return results[0]

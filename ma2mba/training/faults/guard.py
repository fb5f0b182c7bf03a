"""Run training under the watchdog, and report the error that ends it: out-of-memory errors with their remedy."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from ma2mba.planner.choose import Planner
from ma2mba.planner.memory import GIB, USABLE
from ma2mba.planner.predict import Prediction
from ma2mba.planner.schedule import Workload
from ma2mba.training.faults.activity import Activity
from ma2mba.training.faults.failures import report
from ma2mba.training.faults.watchdog import Watchdog
from ma2mba.training.fit.fitting import describe, machine_of, remedy
from ma2mba.training.fit.pricing import make_planner, setup_of_recipe
from ma2mba.training.job import Job
from ma2mba.training.metrics import peak_memory

OUT_OF_HOST_MEMORY = ("can't allocate memory", "cannot allocate memory", "cudahostalloc", "cannot be pinned")
"""Words (in lower case) in the errors of torch and the operating system when host memory runs out."""


@contextmanager
def guard(job: Job, activity: Activity, release: Callable[[], None] | None = None) -> Iterator[None]:
    """Run the block under the watchdog. On an error, report it and end this process at once, with all its threads.

    Before the process ends, it calls `release`: on rank 0, the release of the run folder's lock.
    """
    run, rank = Path(job.recipe.run), job.world.rank
    try:
        with Watchdog(run, rank, job.world.size, activity, job.recipe.watchdog):
            yield
    except Exception as error:
        raised = error  # Python deletes the name `error` at the end of this block
        code = report(error, run, rank, activity, lambda: explanation(raised, job, activity))
        if release:
            release()
        sys.stderr.flush()
        os._exit(code)  # a normal exit may wait for a collective or a thread, while the other ranks wait for this one


def explanation(error: Exception, job: Job, activity: Activity) -> str | None:
    """Return what an out-of-memory error of device or host means for this run and what to do; None for other errors."""
    if isinstance(error, torch.OutOfMemoryError):
        return out_of_memory(job, activity)
    no_memory = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if not (no_memory or any(words in str(error).lower() for words in OUT_OF_HOST_MEMORY)):
        return None
    machine = machine_of(job.world, job.policy)
    if machine.host_bytes is None:
        return out_of_memory(job, activity)
    return out_of_host_memory(job, activity, error, machine.host_bytes)


def out_of_host_memory(job: Job, activity: Activity, error: Exception, share: float) -> str:
    """Return the predicted host memory of this rank, its share of the host's memory in bytes, and what needs less."""
    lines = [
        f"out of host memory in a micro-batch of {_size(activity)} ({error})",
        f"  predicted: {job.fitted_plan.prediction.host_bytes / GIB:.2f} GiB of host memory for recurrent states and "
        f"optimizer of this rank; its share of the host is {share / GIB:.2f} GiB ({describe(job.plan)})",
        "  To need less host memory, use longer chunks, a larger magc.stash_every, magc.stash: device, or a "
        "zero_config without offload_optimizer. Or give the job more memory (`ulimit -l` limits pinned memory).",
        "  Then start again with resume=auto: a run may change these keys when it resumes.",
    ]
    return "\n".join(lines)


def out_of_memory(job: Job, activity: Activity) -> str:
    """Return the predicted and the measured peak of the current micro-batch, and a plan that would fit."""
    others = held_by_others(job.world.device)
    machine = machine_of(job.world, job.policy)
    workload = micro_batch_workload(job, activity)
    dtype, config = job.world.dtype(job.recipe.precision), job.model.config
    setup = setup_of_recipe(job.recipe, job.world.size, dtype, config, job.policy)
    setup = replace(setup, rows=max(1, activity.rows), features=job.dataset.features is not None)
    planner = make_planner(setup, workload, replace(machine, device_bytes=machine.device_bytes - others))
    prediction = planner.predict(workload, job.plan)
    measured = peak_memory(job.world.device, job.plan.graphs)
    lines = [
        f"out of memory in a micro-batch of {_size(activity)}",
        f"  predicted peak: {prediction.device_bytes / GIB:.2f} GiB ({describe(job.plan)})",
        f"  measured peak: {measured / GIB:.2f} GiB before the allocation that failed; the device has "
        f"{machine.device_bytes / GIB:.2f} GiB"
        + (f", of which other processes hold {others / GIB:.2f} GiB" if others else ""),
        f"  {remedy(_with_smaller_budget(planner, prediction), workload)}",
        "  Start again with resume=auto: a run may change magc, micro_batch and micro_batch_tokens when it resumes.",
    ]
    return "\n".join(lines)


def _size(activity: Activity) -> str:
    return f"{activity.rows} x {activity.row_tokens:,} tokens, {activity.frames:,} frames"


def _with_smaller_budget(planner: Planner, prediction: Prediction) -> Planner:
    """Return the planner with a budget below `prediction`, which did not fit although it was predicted to fit."""
    device = min(planner.budget.device, int(USABLE * prediction.device_bytes))
    return replace(planner, budget=replace(planner.budget, device=device))


def micro_batch_workload(job: Job, activity: Activity) -> Workload:
    """Return this rank's share of the longest row of the current micro-batch, for the planner."""
    K, tokens = job.model.config.tokens_per_frame, max(1, activity.row_tokens)
    visual = min(tokens, -(-activity.frames // max(1, activity.rows)) * K)
    whole = Workload(tokens, K, visual, tokens - visual) if activity.frames else Workload(tokens)
    return whole.rank_share(job.world.sequence)


def held_by_others(device: torch.device) -> int:
    """Return how many bytes of a GPU other processes hold; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return max(0, total - free - torch.cuda.memory_reserved(device))

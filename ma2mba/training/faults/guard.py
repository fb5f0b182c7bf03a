"""What stands around a run: the watchdog, and a last word when an error or the end of memory stops it."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from ma2mba.planner.choose import Planner
from ma2mba.planner.predict import Prediction, Sequence
from ma2mba.training.faults.activity import Activity
from ma2mba.training.faults.failures import report
from ma2mba.training.faults.watchdog import Watchdog
from ma2mba.training.fit.fitting import GIB, describe, machine_of, remedy
from ma2mba.training.fit.pricing import USABLE, planner, setup_of_recipe
from ma2mba.training.job import Job
from ma2mba.training.metrics import peak_memory

HOST_IS_FULL = ("can't allocate memory", "cannot allocate memory", "cudahostalloc", "cannot be pinned")
"""What torch and the system say of it, in lower case."""


@contextmanager
def guard(job: Job, activity: Activity) -> Iterator[None]:
    """Run the block under the watchdog. An error is told and ends this process at once, whatever else still runs."""
    run, rank = Path(job.recipe.run), job.world.rank
    try:
        with Watchdog(run, rank, job.world.size, activity, job.recipe.watchdog):
            yield
    except Exception as error:
        raised = error  # the name `error` is gone when this block has ended
        code = report(error, run, rank, activity, lambda: explanation(raised, job, activity))
        sys.stderr.flush()
        os._exit(code)  # a collective, a loader or a library would have the others wait for their time limit


def explanation(error: Exception, job: Job, activity: Activity) -> str | None:
    """What the end of a device's memory, or of the host's, means for this run; None for another error."""
    if isinstance(error, torch.OutOfMemoryError):
        return out_of_memory(job, activity)
    without = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if not (without or isinstance(error, MemoryError) or any(words in str(error).lower() for words in HOST_IS_FULL)):
        return None
    machine = machine_of(job.world, job.policy)
    if machine.host_bytes is None:
        return out_of_memory(job, activity)
    return out_of_host_memory(job, activity, error, machine.host_bytes)


def out_of_host_memory(job: Job, activity: Activity, error: Exception, share: float) -> str:
    """What was predicted for this rank's process, what there was, and what takes less."""
    lines = [
        f"out of host memory: {activity.rows} x {activity.row_tokens:,} tokens, {activity.frames:,} frames ({error})",
        f"  predicted {job.fitted.prediction.host_bytes / GIB:.2f} GiB of states and optimizer there for this rank, of "
        f"{share / GIB:.2f} GiB that are its share ({describe(job.plan)})",
        "  Keep fewer states there by longer chunks or a larger magc.stash_every, or none by magc.stash: device; "
        "take a zero_config without offload_optimizer, or give the job more memory (`ulimit -l` limits pinned memory).",
        "  Start again with resume=auto: these may be changed on the way.",
    ]
    return "\n".join(lines)


def out_of_memory(job: Job, activity: Activity) -> str:
    """What was predicted for the micro-batch in work, what there was, and a plan that would fit."""
    others = held_by_others(job.world.device)
    machine = machine_of(job.world, job.policy)
    sequence = micro_batch_sequence(job, activity)
    dtype, config = job.world.dtype(job.recipe.precision), job.model.config
    setup = setup_of_recipe(job.recipe, job.world.size, dtype, job.policy, config)
    setup = replace(setup, rows=max(1, activity.rows), features=job.dataset.features is not None)
    priced = planner(setup, sequence, replace(machine, device_bytes=machine.device_bytes - others))
    predicted = priced.predict(sequence, job.plan)
    measured = peak_memory(job.world.device, job.plan.graphs)
    lines = [
        f"out of memory: {activity.rows} x {activity.row_tokens:,} tokens, {activity.frames:,} frames",
        f"  predicted peak {predicted.device_bytes / GIB:.2f} GiB ({describe(job.plan)})",
        f"  measured peak {measured / GIB:.2f} GiB before the request that failed, of "
        f"{machine.device_bytes / GIB:.2f} GiB"
        + (f", of which other processes hold {others / GIB:.2f} GiB" if others else ""),
        f"  {remedy(_cautious(priced, predicted), sequence)}",
        "  Start again with resume=auto: magc, micro_batch and micro_batch_tokens may be changed on the way.",
    ]
    return "\n".join(lines)


def _cautious(machine: Planner, predicted: Prediction) -> Planner:
    """The machine with room for less than what did not fit, whatever had been predicted."""
    room = min(machine.budget.device, int(USABLE * predicted.device_bytes))
    return replace(machine, budget=replace(machine.budget, device=room))


def micro_batch_sequence(job: Job, activity: Activity) -> Sequence:
    """The longest row of the micro-batch in work, for the planner: this rank's part of it."""
    K, tokens = job.model.config.tokens_per_frame, max(1, activity.row_tokens)
    seen = min(tokens, -(-activity.frames // max(1, activity.rows)) * K)
    whole = Sequence(tokens, K, seen, tokens - seen) if activity.frames else Sequence(tokens)
    return whole.part(job.world.sequence)


def held_by_others(device: torch.device) -> int:
    """Bytes of a GPU that other processes hold."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return max(0, total - free - torch.cuda.memory_reserved(device))

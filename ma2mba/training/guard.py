"""What stands around a run: the watchdog, and a last word when an error or the end of memory stops it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from ma2mba.magc.choose import Planner
from ma2mba.magc.predict import Prediction, Sequence
from ma2mba.training.activity import Activity
from ma2mba.training.build import Job
from ma2mba.training.failures import report
from ma2mba.training.fitting import GIB, describe, machine_of, remedy
from ma2mba.training.metrics import peak_memory
from ma2mba.training.planning import USABLE, planner, setup_of_recipe
from ma2mba.training.watchdog import Watchdog


@contextmanager
def guard(job: Job, activity: Activity) -> Iterator[None]:
    """Run the block under the watchdog. An error is told and ends this process at once, whatever else still runs."""
    run, rank = Path(job.recipe.run), job.world.rank
    try:
        with Watchdog(run, rank, job.world.size, activity, job.recipe.watchdog):
            yield
    except Exception as error:
        lacking = isinstance(error, torch.OutOfMemoryError)
        code = report(error, run, rank, activity, lambda: out_of_memory(job, activity) if lacking else None)
        sys.stderr.flush()
        os._exit(code)  # a collective, a loader or a library would have the others wait for their time limit


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

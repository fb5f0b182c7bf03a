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
from ma2mba.training.metrics import peak_memory
from ma2mba.training.planning import GIB, USABLE, describe, planner, remedy, setup_of_recipe
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
    """What was predicted for the micro-batch in work, what there was, and a plan that would fit.

    Where ranks share sequences, one rank's part of them is meant, chunks too.
    """
    there, others = memory_there(job.world.device)
    sequence = micro_batch_sequence(job, activity)
    dtype = job.world.dtype(job.recipe.precision)
    setup = setup_of_recipe(
        job.recipe.model_copy(update={"micro_batch": max(1, activity.rows), "model": job.model.config}),
        job.world.size,
        dtype,
        job.policy,
    )
    machine = planner(setup, sequence, there - others, None)
    ranks = job.world.sequence
    plan = replace(job.plan, chunk_tokens=max(1, job.plan.chunk_tokens // ranks))
    predicted = machine.predict(sequence, plan)
    lines = [
        f"out of memory: {activity.rows} x {activity.row_tokens:,} tokens, {activity.frames:,} frames",
        f"  predicted peak {predicted.device_bytes / GIB:.2f} GiB ({describe(plan)})",
        f"  measured peak {peak_memory(job.world.device) / GIB:.2f} GiB before the request that failed, of "
        f"{there / GIB:.2f} GiB" + (f", of which other processes hold {others / GIB:.2f} GiB" if others else ""),
        f"  {remedy(_cautious(machine, predicted), sequence)}",
        *([f"  Chunks are those of one rank: magc.chunk_tokens is {ranks} times as many."] if ranks > 1 else []),
        "  Start again with resume=auto: magc, micro_batch and micro_batch_tokens may be changed on the way.",
    ]
    return "\n".join(lines)


def _cautious(machine: Planner, predicted: Prediction) -> Planner:
    """The machine with room for less than what did not fit, whatever had been predicted."""
    room = min(machine.budget.device, int(USABLE * predicted.device_bytes))
    return replace(machine, budget=replace(machine.budget, device=room))


def micro_batch_sequence(job: Job, activity: Activity) -> Sequence:
    """The longest row of the micro-batch in work, for the planner: this rank's part of it."""
    K, ranks = job.model.config.tokens_per_frame, job.world.sequence
    tokens = max(1, activity.row_tokens // ranks)
    seen = min(tokens, -(-activity.frames // (max(1, activity.rows) * ranks)) * K)
    return Sequence(tokens, K, seen, tokens - seen) if activity.frames else Sequence(tokens)


def memory_there(device: torch.device) -> tuple[int, int]:
    """Bytes of the device (of the machine for a CPU), and how many of them other processes hold."""
    if device.type != "cuda":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 0
    free, total = torch.cuda.mem_get_info(device)
    return total, max(0, total - free - torch.cuda.memory_reserved(device))

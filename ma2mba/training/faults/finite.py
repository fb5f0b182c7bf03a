"""Stop a run whose loss or gradient is no longer a number, and keep the step for `ma2mba replay`."""

import math
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ma2mba.data.sampler import StepPlan
from ma2mba.errors import UserError
from ma2mba.text import LISTED, shorten
from ma2mba.training.checkpoint import folder as checkpoint
from ma2mba.training.faults.replay import REPLAY, MicroBatchRecord, StepRecord, write
from ma2mba.training.job import Job
from ma2mba.training.metrics import StepResult


class Ranks(Protocol):
    """What this needs of an engine (`ma2mba.training.engine.Engine`)."""

    def barrier(self) -> None: ...
    def gather(self, values: Tensor) -> list[list[float]]: ...


def stop_unless_finite(job: Job, ranks: Ranks, step: int, plan: StepPlan, result: StepResult) -> None:
    """Raise UserError on all ranks when a step's loss or gradient norm is infinite or not a number.

    RUN/replay/step-000123.json then holds the step, and names the latest checkpoint.
    """
    if is_finite(result):
        return
    losses = summed_by_group(ranks.gather(result.losses_M), job.world.sequence)
    path = job.recipe.run_folder / REPLAY / f"step-{step:06d}.json"
    record = keep(job, step, plan, result, losses)
    try:
        if job.world.rank == 0:
            write(path, record)
    finally:
        ranks.barrier()
    what, value = ("gradient norm", result.gradient_norm) if math.isfinite(result.loss) else ("loss", result.loss)
    raise UserError(
        f"step {step}: the {what} is {value} ({samples_of(record)}). `ma2mba replay {path}` runs each sample of this "
        "step separately. Remove a bad sample from the data, or resume from the latest checkpoint with smaller "
        "learning rates under trainable, or with precision=fp32"
    )


def is_finite(result: StepResult) -> bool:
    """Return True if the loss and the gradient norm of a step are finite numbers."""
    return math.isfinite(result.loss) and math.isfinite(result.gradient_norm)


def samples_of(record: StepRecord) -> str:
    """Return the ids of a step's samples as text: first those of micro-batches whose loss is not finite."""
    micro_batches = [micro_batch for rank in record.micro_batches for micro_batch in rank]
    bad = [one for one in micro_batches if not math.isfinite(one.loss)]
    rest = [one for one in micro_batches if math.isfinite(one.loss)]
    groups = [("micro-batches with such a loss", bad), ("other samples" if bad else "samples", rest)]
    return "; ".join(f"{name}: {_listed(group)}" for name, group in groups if group)


def _listed(micro_batches: list[MicroBatchRecord]) -> str:
    ids = [shorten(sample_id) for one in micro_batches for sample_id in one.sample_ids]
    more = [f"and {len(ids) - LISTED:,} more in the file below"] if len(ids) > LISTED else []
    return ", ".join(ids[:LISTED] + more)


def summed_by_group(losses: list[list[float]], ranks: int) -> list[list[float]]:
    """Add up the losses of each micro-batch over every `ranks` ranks that share it.

    `losses[rank][micro_step]` is a rank's share; the result is `[group][micro_step]`.
    """
    groups = [losses[first : first + ranks] for first in range(0, len(losses), ranks)]
    return [[sum(shares) for shares in zip(*group, strict=True)] for group in groups]


def keep(job: Job, step: int, plan: StepPlan, result: StepResult, losses: list[list[float]]) -> StepRecord:
    """Return what a replay needs. `losses[group][micro_step]` add up to the step's loss."""
    dataset = job.dataset
    start = checkpoint.latest(job.recipe.run_folder) or (job.start.folder if job.start else None)

    def micro_batch(indices: list[int], share: float) -> MicroBatchRecord:
        ids = [dataset.samples[i][1].sample_id for i in indices]
        loss = share * plan.targets / int(dataset.targets_N[indices].sum())
        return MicroBatchRecord(samples=indices, sample_ids=ids, loss=loss)

    return StepRecord(
        step=step,
        loss=result.loss,
        gradient_norm=result.gradient_norm,
        checkpoint=str(Path(start)) if start else None,
        dtype=str(job.world.dtype(job.recipe.precision)),
        plan=vars(job.plan),
        recipe=job.recipe.model_dump(mode="json"),
        micro_batches=[
            [micro_batch(indices, share) for indices, share in zip(*rank, strict=True)]
            for rank in zip(plan.micro_batches, losses, strict=True)
        ],
    )

"""A run stops when its loss or gradient is no longer a number, and keeps the step for `ma2mba replay`."""

import math
from pathlib import Path

from ma2mba.data.sampler import StepPlan
from ma2mba.errors import UserError
from ma2mba.training.checkpoint import folder as checkpoint
from ma2mba.training.engine import Engine, barrier
from ma2mba.training.faults.replay import REPLAY, MicroBatchRecord, StepRecord, write
from ma2mba.training.job import Job
from ma2mba.training.metrics import StepResult


def stop_unless_finite(job: Job, engine: Engine, step: int, plan: StepPlan, result: StepResult) -> None:
    """Raises UserError, on all ranks, when a step's loss or the norm of its gradient is infinite or not a number.

    RUN/replay/step-000123.json then holds the step.
    """
    if math.isfinite(result.loss) and math.isfinite(result.gradient_norm):
        return
    losses = summed_by_group(engine.gather(result.losses_M), engine.world.sequence)
    path = job.recipe.run_folder / REPLAY / f"step-{step:06d}.json"
    try:
        if engine.world.rank == 0:
            write(path, keep(job, step, plan, result, losses))
    finally:
        barrier()
    what, value = ("gradient norm", result.gradient_norm) if math.isfinite(result.loss) else ("loss", result.loss)
    raise UserError(
        f"step {step}: the {what} is {value}; `ma2mba replay {path}` runs each of the step's samples alone. Take a bad "
        "sample out of the data, or go on from the latest checkpoint with smaller learning rates under trainable, or "
        "precision=fp32"
    )


def summed_by_group(losses: list[list[float]], ranks: int) -> list[list[float]]:
    """Each `ranks` ranks' shares of the losses of the micro-batches that they see together, summed."""
    groups = [losses[first : first + ranks] for first in range(0, len(losses), ranks)]
    return [[sum(shares) for shares in zip(*group, strict=True)] for group in groups]


def keep(job: Job, step: int, plan: StepPlan, result: StepResult, losses: list[list[float]]) -> StepRecord:
    """What a replay needs. `losses[rank][micro_step]` (of a group that shares samples) are parts of the step's loss."""
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

"""One training step, from top to bottom: load, forward and backward of every micro-batch, optimizer, result."""

import torch

from ma2mba.data.loader import LoadedStep
from ma2mba.data.sampler import padded_tokens
from ma2mba.training.engine import Engine
from ma2mba.training.faults.activity import Activity
from ma2mba.training.faults.stop_points import StopPoints
from ma2mba.training.job import Job
from ma2mba.training.metrics import StepResult
from ma2mba.training.optimizer import rate_factor


def train_step(
    job: Job, engine: Engine, loaded: LoadedStep, step: int, activity: Activity, stop_points: StopPoints
) -> StepResult:
    """Take step number `step` (the first is 0), with the gradient of the mean loss over the global batch.

    The mean is over the supervised tokens of all ranks. Raise Stopped, before any weight has changed, when the run
    stops.
    """
    plan, ranks = loaded.plan, job.world.sequence
    rank_tokens = [-(-tokens // ranks) for tokens in padded_tokens(plan, job.dataset.length_N)]
    activity.begin_step(step + 1, max(rank_tokens))
    rates = engine.set_rates(rate_factor(step, job.steps, job.recipe.schedule))
    micro_steps = len(plan.micro_batches[job.world.group])
    averaged_over = engine.averaging(micro_steps)
    losses = []
    for micro_step in range(1, micro_steps + 1):
        activity.enter("loading")
        stop_points.before_micro_batch(last=micro_step == micro_steps)
        batch = next(loaded.batches)
        activity.begin_micro_batch(batch)
        stop_points.before_forward()
        loss = engine.forward(batch, averaged_over / plan.targets, stop_points)
        stop_points.before_backward()
        activity.enter("backward")
        engine.backward(loss)
        activity.enter("optimizer")
        engine.step()
        losses.append(loss.detach())
    activity.end_micro_batches()
    losses_M = torch.stack(losses) / averaged_over
    return StepResult(
        loss=engine.sum_over_ranks(losses_M.sum()),
        gradient_norm=engine.gradient_norm(),
        rates=rates,
        tokens=plan.tokens,
        frames=plan.frames,
        targets=plan.targets,
        epoch=plan.epoch,
        rank_tokens=rank_tokens,
        losses_M=losses_M,
    )

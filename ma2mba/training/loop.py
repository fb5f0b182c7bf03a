"""The training loop: steps, the report of each, and checkpoints."""

import math

import torch
import yaml

from ma2mba.data.loader import LoadedStep, Loader
from ma2mba.errors import UserError
from ma2mba.shards.integrity import atomic_write
from ma2mba.training.build import Job
from ma2mba.training.deepspeed_engine import Engine, build_engine
from ma2mba.training.interrupt import Interruption, Stopped
from ma2mba.training.metrics import Metrics, StepResult
from ma2mba.training.saving import go_on, save
from ma2mba.training.stages import rate_factor


def open_engine(job: Job) -> Engine:
    """The engine, at the checkpoint that the job goes on from. All ranks call it."""
    engine = build_engine(job.model, job.recipe, job.plan, job.world, job.policy)
    go_on(job, engine)
    return engine


def open_loader(job: Job) -> Loader:
    """This rank's batches from the job's position on."""
    tokens_per_frame = job.model.config.tokens_per_frame
    return Loader(job.dataset, job.sampler, tokens_per_frame, rank=job.world.rank, at=job.position)


def open_metrics(job: Job) -> Metrics:
    """The run folder's report, and the recipe as it was understood. Rank 0 only. UserError if it cannot be written."""
    recipe = job.recipe
    try:
        with atomic_write(recipe.run_folder / "recipe.yaml") as file:
            yaml.safe_dump(recipe.model_dump(mode="json"), file, sort_keys=False)
        return Metrics(
            recipe.run_folder,
            recipe.stage,
            job.first_step,
            job.steps,
            recipe.log_every,
            job.world.device,
            first_tokens=job.sampler.tokens_until(job.first_step),
            tokens=job.sampler.tokens_until(job.steps),
        )
    except OSError as error:
        raise UserError(f"run: {recipe.run} cannot be written ({error.strerror}); choose another folder") from error


def train(job: Job, engine: Engine, loader: Loader, metrics: Metrics | None) -> None:
    """Run the steps that are left, or those until a signal asks to stop; rank 0 brings `metrics`.

    Raises UserError when the loss is no longer a number.
    """
    every, done, saved, at = job.recipe.checkpoint.every, job.first_step, job.first_step, job.position
    with Interruption() as interruption:
        try:
            for step, loaded in zip(range(job.first_step, job.steps), loader, strict=False):
                result = train_step(engine, loaded, rate_factor(step, job.steps, job.recipe.schedule), interruption)
                if not math.isfinite(result.loss):
                    raise UserError(
                        f"step {step + 1}: the loss is {result.loss}; go on from the latest checkpoint with smaller "
                        "learning rates under trainable, or precision=fp32"
                    )
                if metrics:
                    metrics.add(step + 1, result, loader.waited)
                done, at = step + 1, loaded.plan.after
                if done % every == 0 or done == job.steps:
                    folder, saved = save(job, engine, done, at), done
                    if metrics:
                        metrics.message(f"saved {folder}")
        except Stopped as stopped:
            if done > saved:
                save(job, engine, done, at)
            if metrics:
                metrics.message(f"{stopped}: stopped after step {done} of {job.steps}; the same command goes on there")


def train_step(engine: Engine, loaded: LoadedStep, factor: float, interruption: Interruption) -> StepResult:
    """One step of the optimizer: the gradient of the mean loss over the global batch's targets, whoever holds them.

    Raises Stopped, before anything has changed, when a signal asks for it.
    """
    plan = loaded.plan
    rates = engine.set_rates(factor)
    micro_steps = len(plan.micro_batches[engine.world.rank])
    averaged_over = engine.averaging(micro_steps)
    batches = interruption.checked(loaded.batches, micro_steps, engine)
    losses = [engine.micro_step(batch, averaged_over / plan.targets) for batch in batches]
    return StepResult(
        loss=engine.sum_over_ranks(torch.stack(losses).sum()) / averaged_over,
        gradient_norm=engine.gradient_norm(),
        rates=rates,
        tokens=plan.tokens,
        frames=plan.frames,
        epoch=plan.epoch,
    )

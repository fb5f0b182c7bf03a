"""The training loop: steps, the report of each, and checkpoints."""

import time
from pathlib import Path

import torch
import yaml

from ma2mba.data.loader import PRIMED_FRAMES, LoadedStep, Loader
from ma2mba.data.sampler import Position, padded_tokens
from ma2mba.errors import UserError
from ma2mba.model.pretrained import save_model
from ma2mba.shards.integrity import atomic_write
from ma2mba.training import checkpoint
from ma2mba.training.activity import Activity
from ma2mba.training.build import Job
from ma2mba.training.deepspeed_engine import Engine, barrier, build_engine
from ma2mba.training.finite import stop_unless_finite
from ma2mba.training.flops import ModelFlops, device_peak
from ma2mba.training.metrics import Metrics, StepResult
from ma2mba.training.stages import rate_factor


def open_engine(job: Job) -> Engine:
    """The engine, at the checkpoint that the job goes on from. All ranks call it."""
    engine = build_engine(job.model, job.recipe, job.plan, job.world, job.policy)
    if job.start:
        engine.load(job.start.folder / checkpoint.DEEPSPEED)
    return engine


def open_loader(job: Job) -> Loader:
    """This rank's batches from the job's position on. A sample's first frames are those of its group's place 0."""
    tokens_per_frame, primed = job.model.config.tokens_per_frame, 0 if job.world.place else PRIMED_FRAMES
    rank = job.world.group
    return Loader(job.dataset, job.sampler, tokens_per_frame, rank=rank, at=job.position, primed_frames=primed)


def open_metrics(job: Job) -> Metrics:
    """The run folder's report, and the recipe as it was understood. Rank 0 only. UserError if it cannot be written."""
    recipe = job.recipe
    peak = device_peak(job.world.device, job.world.dtype(recipe.precision))
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
            flops=ModelFlops(job.model.config, recipe.trainable.parts, pictures=job.dataset.features is None),
            peak_flops=peak and peak * job.world.size,
            predicted_bytes=job.fitted.prediction.device_bytes,
            recorded=job.plan.graphs,
        )
    except OSError as error:
        raise UserError(f"run: {recipe.run} cannot be written ({error.strerror}); choose another folder") from error


def train(job: Job, engine: Engine, loader: Loader, metrics: Metrics | None, activity: Activity) -> None:
    """Run the steps that are left; rank 0 brings `metrics`. UserError when loss or gradient are no longer numbers."""
    every = job.recipe.checkpoint.every
    for step, loaded in zip(range(job.first_step, job.steps), loader, strict=False):
        ranks = job.world.sequence
        rank_tokens = [-(-tokens // ranks) for tokens in padded_tokens(loaded.plan, job.dataset.length_N)]
        activity.begin_step(step + 1, max(rank_tokens))
        factor = rate_factor(step, job.steps, job.recipe.schedule)
        result = train_step(engine, loaded, factor, rank_tokens, activity)
        stop_unless_finite(job, engine, step + 1, loaded.plan, result)
        if metrics:
            metrics.add(step + 1, result, loader.waited)
        if (step + 1) % every == 0 or step + 1 == job.steps:
            activity.begin_saving()
            began = time.perf_counter()
            folder = save(job, engine, step + 1, loaded.plan.after)
            if metrics:
                metrics.saved(step + 1, folder, time.perf_counter() - began)


def train_step(
    engine: Engine, loaded: LoadedStep, factor: float, rank_tokens: list[int], activity: Activity
) -> StepResult:
    """One step of the optimizer: the gradient of the mean loss over the global batch's targets, whoever holds them."""
    plan = loaded.plan
    rates = engine.set_rates(factor)
    averaged_over = engine.averaging(len(plan.micro_batches[engine.world.group]))
    scale = averaged_over / plan.targets
    losses = [engine.micro_step(batch, scale, activity) for batch in activity.micro_batches(loaded.batches)]
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


def save(job: Job, engine: Engine, step: int, at: Position) -> Path:
    """Write a checkpoint; all ranks call it. Raises UserError when the disk does not take it."""
    run, leads = job.recipe.run_folder, engine.world.rank == 0
    temporary = checkpoint.temporary_folder(run, step)
    try:
        if leads:
            checkpoint.clear_temporary(run)
            temporary.mkdir(parents=True)
        barrier()
        engine.save(temporary / checkpoint.DEEPSPEED)
        with engine.whole_weights():
            if leads:
                save_model(job.model, job.dataset.tokenizer_path, temporary / checkpoint.MODEL)
        barrier()
        if leads:
            checkpoint.publish(run, step, job.recipe.checkpoint.keep_last, at, job.facts)
        barrier()
    except OSError as error:
        raise UserError(
            f"{temporary}: cannot be written ({error.strerror}); make room and start again (the latest is whole)"
        ) from error
    return run / checkpoint.CHECKPOINTS / f"step-{step:06d}"

"""The training loop: steps, the report of each, and checkpoints."""

import time
import zlib
from contextlib import suppress
from dataclasses import dataclass

import torch
import yaml
from torch.distributed import DistError

from ma2mba.data.loader import PRIMED_FRAMES, LoadedStep, Loader
from ma2mba.data.sampler import Position, padded_tokens
from ma2mba.errors import UserError
from ma2mba.files import atomic_write
from ma2mba.training.engine import Engine, build_engine
from ma2mba.training.faults.activity import Activity
from ma2mba.training.faults.signals import Interruption, Stopped
from ma2mba.training.finite import stop_unless_finite
from ma2mba.training.flops import ModelFlops, device_peak
from ma2mba.training.job import Job
from ma2mba.training.metrics import Metrics, StepResult
from ma2mba.training.optimizer import rate_factor
from ma2mba.training.saving import go_on, save


def open_engine(job: Job) -> Engine:
    """The engine, at the checkpoint that the job goes on from. All ranks call it.

    Raises UserError when ranks that share sequences have chosen different plans: they would wait for each other.
    """
    engine = build_engine(job.model, job.recipe, job.plan, job.world, job.policy)
    if job.world.sequence > 1:
        _require_one_plan(job, engine)
    go_on(job, engine)
    return engine


def _require_one_plan(job: Job, engine: Engine) -> None:
    digest = zlib.crc32(repr(job.plan).encode())
    digests = engine.gather(torch.tensor([digest], dtype=torch.float64, device=job.world.device))
    if len({found for (found,) in digests}) > 1:
        raise UserError(
            f"magc: ranks that share sequences need one plan, and this one's is {job.plan}; their memory differs: "
            "write the plan that fits all of them into the recipe"
        )


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
            captured=job.plan.graphs,
        )
    except OSError as error:
        raise UserError(f"run: {recipe.run} cannot be written ({error.strerror}); choose another folder") from error


@dataclass
class Progress:
    """Steps done and saved, and where the data go on."""

    done: int
    saved: int
    at: Position


def train(job: Job, engine: Engine, loader: Loader, metrics: Metrics | None, activity: Activity) -> None:
    """Run the steps that are left, or those until a signal asks to stop; rank 0 brings `metrics`.

    Raises UserError when loss or gradient are no longer numbers.
    """
    every, progress = job.recipe.checkpoint.every, Progress(job.first_step, job.first_step, job.position)
    with Interruption() as interruption:
        try:
            for step, loaded in zip(range(job.first_step, job.steps), loader, strict=False):
                result = train_step(job, engine, loaded, step, activity, interruption)
                stop_unless_finite(job, engine, step + 1, loaded.plan, result)
                if metrics:
                    metrics.add(step + 1, result, loader.waited)
                progress.done, progress.at = step + 1, loaded.plan.after
                if progress.done % every == 0 or progress.done == job.steps:
                    save_progress(job, engine, progress, metrics, activity)
        except Stopped as stopped:
            engine.give_up_step()
            if progress.done > progress.saved:
                save_progress(job, engine, progress, metrics, activity)
            if metrics:
                where = f"stopped after step {progress.done} of {job.steps}"
                metrics.message(f"{stopped}: {where}; the same command goes on there")
        except Exception:
            with suppress(DistError):  # the store may be gone with rank 0
                engine.agreement.fail()
            raise


def save_progress(job: Job, engine: Engine, progress: Progress, metrics: Metrics | None, activity: Activity) -> None:
    """Write a checkpoint and say how long it took."""
    activity.begin_saving()
    began = time.perf_counter()
    folder = save(job, engine, progress.done, progress.at)
    progress.saved = progress.done
    if metrics:
        metrics.saved(progress.done, folder, time.perf_counter() - began)


def train_step(
    job: Job, engine: Engine, loaded: LoadedStep, step: int, activity: Activity, interruption: Interruption
) -> StepResult:
    """One step of the optimizer: the gradient of the mean loss over the global batch's targets, whoever holds them.

    Raises Stopped, before anything has changed, when a signal asks for it.
    """
    plan, ranks = loaded.plan, job.world.sequence
    rank_tokens = [-(-tokens // ranks) for tokens in padded_tokens(plan, job.dataset.length_N)]
    activity.begin_step(step + 1, max(rank_tokens))
    rates = engine.set_rates(rate_factor(step, job.steps, job.recipe.schedule))
    micro_steps = len(plan.micro_batches[engine.world.group])
    averaged_over = engine.averaging(micro_steps)
    scale = averaged_over / plan.targets
    batches = interruption.checked(loaded.batches, micro_steps, engine.agreement, engine.zero_stage)
    losses = [engine.micro_step(batch, scale, activity, breaks) for batch, breaks in activity.micro_batches(batches)]
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

"""Open what a run needs once its processes have joined: the engine, this rank's batches, the report."""

import zlib

import torch
import yaml

from ma2mba.data.loader import PRIMED_FRAMES, Loader
from ma2mba.errors import UserError
from ma2mba.files import atomic_write
from ma2mba.training.checkpoint.save import resume
from ma2mba.training.engine import Engine, build_engine
from ma2mba.training.flops import ModelFlops, device_peak
from ma2mba.training.job import Job
from ma2mba.training.metrics import Metrics
from ma2mba.training.start_clock import StartClock


def open_engine(job: Job) -> Engine:
    """Return the engine, at the checkpoint that the job resumes. All ranks call it.

    Raise UserError when ranks that share sequences have chosen different plans, with which they would deadlock.
    """
    engine = build_engine(job.model, job.recipe, job.plan, job.world, job.policy)
    if job.world.sequence > 1:
        _require_one_plan(job, engine)
    if job.start:
        job.clock.enter("optimizer state")
    resume(engine, job.start, job.recipe.seed)
    return engine


def _require_one_plan(job: Job, engine: Engine) -> None:
    digest = zlib.crc32(repr(job.plan).encode())
    digests = engine.gather(torch.tensor([digest], dtype=torch.float64, device=job.world.device))
    if len({found for (found,) in digests}) > 1:
        raise UserError(
            f"magc: ranks that share sequences need the same plan, but their memory differs and rank {job.world.rank} "
            f"chose {job.plan}. Write a plan that fits all ranks into the recipe, under magc"
        )


def open_loader(job: Job) -> Loader:
    """Return this rank's batches from the job's position on.

    Ranks that share samples have the same batches. Only the first rank of a group reads the first frames ahead.
    """
    tokens_per_frame, primed = job.model.config.tokens_per_frame, 0 if job.world.place else PRIMED_FRAMES
    rank = job.world.group
    return Loader(job.dataset, job.sampler, tokens_per_frame, rank=rank, at=job.position, primed_frames=primed)


def open_metrics(job: Job, clock: StartClock | None = None, echo: bool = False) -> Metrics:
    """Write RUN/recipe.yaml and return the run's report. Rank 0 only.

    `clock` has timed this start. With `echo`, the report also prints every line of metrics.jsonl on stdout.
    Raise UserError when the run folder cannot be written.
    """
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
            flops=ModelFlops(job.model.config, recipe.trainable.components, pictures=job.dataset.features is None),
            peak_flops=peak and peak * job.world.size,
            predicted_bytes=job.fitted_plan.prediction.device_bytes,
            captured=job.plan.graphs,
            clock=clock,
            echo=echo,
        )
    except OSError as error:
        raise UserError(f"run: {recipe.run} cannot be written ({error.strerror}). Choose another folder") from error

"""The training loop: steps, their report, and checkpoints."""

import time
from contextlib import suppress
from dataclasses import dataclass

from torch.distributed import DistError

from ma2mba.data.loader import Loader
from ma2mba.data.sampler import Position
from ma2mba.model.hf.card import CardFacts
from ma2mba.training.checkpoint.save import save
from ma2mba.training.engine import Engine
from ma2mba.training.faults.activity import Activity
from ma2mba.training.faults.finite import stop_unless_finite
from ma2mba.training.faults.stop_points import Stopped, StopPoints
from ma2mba.training.faults.stop_vote import build_vote
from ma2mba.training.job import Job
from ma2mba.training.metrics import Metrics
from ma2mba.training.step import train_step


@dataclass
class Progress:
    """Steps done, steps saved, and the next position in the data."""

    done: int
    saved: int
    at: Position


def train(job: Job, engine: Engine, loader: Loader, metrics: Metrics | None, activity: Activity) -> None:
    """Run the remaining steps, or stop earlier at a point of StopPoints; save at the end. All ranks call it.

    `metrics` is rank 0's report, None on other ranks. Raise UserError when the loss or the gradient is not a number.
    """
    every, progress = job.recipe.checkpoint.every, Progress(job.first_step, job.first_step, job.position)
    with StopPoints(build_vote(job.world), engine.zero_stage) as stop_points:
        try:
            for step, loaded in zip(range(job.first_step, job.steps), loader, strict=False):
                result = train_step(job, engine, loaded, step, activity, stop_points)
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
                metrics.message(f"{stopped}: {where}. Run the same command again to resume")
        except Exception:
            with suppress(DistError):  # rank 0 keeps the store of the vote and may have ended
                stop_points.fail()
            raise


def save_progress(job: Job, engine: Engine, progress: Progress, metrics: Metrics | None, activity: Activity) -> None:
    """Write a checkpoint and report how long that took."""
    activity.begin_saving()
    began = time.perf_counter()
    facts, last = job.facts, metrics.last if metrics else {}
    card = CardFacts(facts["recipe"], progress.done, last, job.base_models)
    folder = save(engine, job.recipe, job.dataset.tokenizer_path, facts, progress.done, progress.at, card)
    progress.saved = progress.done
    if metrics:
        metrics.saved(progress.done, folder, time.perf_counter() - began)

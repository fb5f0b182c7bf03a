"""The training loop: steps, their report, and checkpoints."""

import time
from contextlib import suppress
from dataclasses import dataclass

from torch.distributed import DistError

from ma2mba.data.loader import Loader
from ma2mba.data.sampler import Position
from ma2mba.errors import UserError
from ma2mba.model.hf.card import CardFacts
from ma2mba.training.engine import Engine
from ma2mba.training.faults.activity import Activity
from ma2mba.training.faults.finite import is_finite, stop_unless_finite
from ma2mba.training.faults.shares import build_shares
from ma2mba.training.faults.stop_points import Stopped, StopPoints
from ma2mba.training.faults.stop_vote import build_vote
from ma2mba.training.fit.spare_memory import spare_host_bytes
from ma2mba.training.job import Job
from ma2mba.training.metrics import Metrics
from ma2mba.training.saver import Contents, Save, Saver
from ma2mba.training.step import train_step

LAST_WAIT_SECONDS = 45.0
"""How long a rank with an error waits for a save in progress. The other ranks wait 60 s for its report."""


@dataclass
class Progress:
    """Steps done, steps that a save holds, and the next position in the data."""

    done: int
    saved: int
    at: Position


def train(job: Job, engine: Engine, loader: Loader, metrics: Metrics | None, activity: Activity) -> None:
    """Run the remaining steps, or stop earlier at a point of StopPoints; save at the end. All ranks call it.

    `metrics` is rank 0's report, None on other ranks. Raise UserError when the loss or the gradient is not a number.
    """
    every, progress = job.recipe.checkpoint.every, Progress(job.first_step, job.first_step, job.position)
    with StopPoints(build_vote(job.world), engine.zero_stage) as stop_points, open_saver(job, engine) as saver:
        try:
            for step, loaded in zip(range(job.first_step, job.steps), loader, strict=False):
                report_save(saver.finished(), metrics)
                result = train_step(job, engine, loaded, step, activity, stop_points)
                if not is_finite(result):
                    saver.wait()  # so that the file for `ma2mba replay` names this checkpoint
                stop_unless_finite(job, engine, step + 1, loaded.plan, result)
                if metrics:
                    metrics.add(step + 1, result, loader.waited)
                progress.done, progress.at = step + 1, loaded.plan.after
                if progress.done % every == 0 or progress.done == job.steps:
                    start_save(job, saver, progress, metrics, activity, last=progress.done == job.steps)
            finish_save(saver, metrics, activity)
        except Stopped as stopped:
            engine.give_up_step()
            if progress.done > progress.saved:
                start_save(job, saver, progress, metrics, activity, last=True)
            finish_save(saver, metrics, activity)
            if metrics:
                where = f"stopped after step {progress.done} of {job.steps}"
                metrics.message(f"{stopped}: {where}. Run the same command again to resume")
        except Exception as error:
            with suppress(DistError):  # rank 0 keeps the store of the vote and may have ended
                stop_points.fail()
            if isinstance(error, UserError):
                saver.wait(LAST_WAIT_SECONDS)
            raise


def open_saver(job: Job, engine: Engine) -> Saver:
    """Return what saves the checkpoints of a run. All ranks call it."""
    spare = spare_host_bytes(job.world, job.policy, job.fitted_plan.prediction)
    return Saver(engine, job.recipe, job.dataset.tokenizer_path, spare, build_shares(job.world))


def start_save(
    job: Job, saver: Saver, progress: Progress, metrics: Metrics | None, activity: Activity, *, last: bool
) -> None:
    """Begin to write a checkpoint, when the one before is complete, and report how long training stood still."""
    activity.begin_saving()
    began = time.perf_counter()
    saver.wait()
    report_save(saver.finished(), metrics)
    facts = job.facts
    card = CardFacts(facts["recipe"], progress.done, metrics.last if metrics else {}, job.base_models)
    saver.start(progress.done, Contents(progress.at, facts, card), last=last)
    progress.saved = progress.done
    if metrics:
        metrics.stood_still(progress.done, time.perf_counter() - began)


def finish_save(saver: Saver, metrics: Metrics | None, activity: Activity) -> None:
    """Wait until the latest checkpoint is complete, and report it."""
    activity.begin_saving()
    report_save(saver.finish(), metrics)


def report_save(save: Save | None, metrics: Metrics | None) -> None:
    """Report a checkpoint that is complete, if there is one."""
    if metrics and save:
        metrics.saved(save.step, save.folder, save.seconds)

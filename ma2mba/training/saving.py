"""What the ranks do together to write a checkpoint, and to go on from one."""

from pathlib import Path

from ma2mba.data.sampler import Position
from ma2mba.errors import UserError
from ma2mba.model.pretrained import save_model
from ma2mba.training.checkpoint import folder as checkpoint
from ma2mba.training.checkpoint.rng import RandomState, seed
from ma2mba.training.engine import Engine, barrier
from ma2mba.training.job import Job


def save(job: Job, engine: Engine, step: int, at: Position) -> Path:
    """Write a checkpoint; all ranks call it. Raises UserError when the disk does not take it."""
    run, leads = job.recipe.run_folder, engine.world.rank == 0
    temporary = checkpoint.temporary_folder(run, step)
    folder = run / checkpoint.CHECKPOINTS / f"step-{step:06d}"
    try:
        if leads:
            checkpoint.clear_temporary(run)
            temporary.mkdir(parents=True)
        barrier()
        files = engine.save(temporary / checkpoint.OPTIMIZER)
        state = checkpoint.RankState(random=RandomState.capture(engine.world.device), files=files)
        checkpoint.write_rank(temporary, engine.world.rank, state)
        weights = engine.weights()
        if leads:
            save_model(job.model, job.dataset.tokenizer_path, temporary / checkpoint.MODEL, weights)
        barrier()
        if leads:
            checkpoint.publish(run, step, at, job.facts)
            checkpoint.prune(folder, job.recipe.checkpoint.keep_last, job.recipe.checkpoint.keep_every)
        barrier()
    except OSError as error:
        raise UserError(
            f"{error.filename or temporary}: cannot be written ({error.strerror}); make room and start again "
            "(the latest is whole)"
        ) from error
    return folder


def go_on(job: Job, engine: Engine) -> None:
    """Put a new engine where the job's checkpoint left off, or at the start of a run."""
    rank = engine.world.rank
    random = job.start.random_of(rank) if job.start else None
    if job.start:
        engine.load(job.start.folder / checkpoint.OPTIMIZER)
    if random:
        random.restore(engine.world.device)
    else:
        seed(job.recipe.seed, rank, job.first_step)

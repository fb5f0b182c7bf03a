"""Write a checkpoint, and resume an engine from one. All ranks do both together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ma2mba.data.sampler import Position
from ma2mba.errors import UserError
from ma2mba.model.hf.card import CardFacts
from ma2mba.model.pretrained import save_model
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.shards.manifest import FileEntry
from ma2mba.training.checkpoint import folder as checkpoint
from ma2mba.training.checkpoint.rng import RandomState, seed
from ma2mba.training.recipe.schema import Recipe
from ma2mba.training.world import World


class SavedEngine(Protocol):
    """What a checkpoint needs of an engine (`ma2mba.training.engine.Engine`)."""

    world: World
    model: VideoMa2mba

    def barrier(self) -> None: ...
    def weights(self) -> dict[str, Tensor]: ...
    def save(self, folder: Path) -> list[FileEntry]: ...
    def load(self, folder: Path) -> None: ...


def save(
    engine: SavedEngine,
    recipe: Recipe,
    tokenizer_path: Path,
    facts: Mapping[str, Any],
    step: int,
    at: Position,
    card: CardFacts,
) -> Path:
    """Write the checkpoint after `step` steps and return its folder. All ranks call it.

    `facts` are the fields of TrainerState that do not change during a run, `at` is the next position in the data,
    `card` is what the model card says.
    Raise UserError if the disk is full or a file cannot be written.
    """
    run, leads = recipe.run_folder, engine.world.rank == 0
    temporary = checkpoint.temporary_folder(run, step)
    folder = run / checkpoint.CHECKPOINTS / f"step-{step:06d}"
    try:
        if leads:
            checkpoint.clear_temporary(run)
            temporary.mkdir(parents=True)
        engine.barrier()
        files = engine.save(temporary / checkpoint.OPTIMIZER)
        state = checkpoint.RankState(random=RandomState.capture(engine.world.device), files=files)
        checkpoint.write_rank(temporary, engine.world.rank, state)
        weights = engine.weights()
        if leads:
            save_model(engine.model, tokenizer_path, temporary / checkpoint.MODEL, weights, card)
        engine.barrier()
        if leads:
            checkpoint.publish(run, step, at, facts)
            checkpoint.prune(folder, recipe.checkpoint.keep_last, recipe.checkpoint.keep_every)
        engine.barrier()
    except OSError as error:
        raise UserError(
            f"{error.filename or temporary}: cannot be written ({error.strerror}). Free disk space, then run the "
            "same command again to resume from the latest checkpoint, which is complete"
        ) from error
    return folder


def resume(engine: SavedEngine, start: checkpoint.Start | None, random_seed: int) -> None:
    """Load the optimizer's state and the random number generators of `start` into a new engine.

    Without `start`, or for a rank that `start` does not have, seed the generators instead.
    """
    rank = engine.world.rank
    random = start.random_of(rank) if start else None
    if start:
        engine.load(start.folder / checkpoint.OPTIMIZER)
    if start and random:
        try:
            random.restore(engine.world.device)
        except ValueError as error:
            raise UserError(
                f"{start.folder / checkpoint.RANKS}: the random number generators of rank {rank} cannot be restored "
                f"({error}). Resume from another checkpoint"
            ) from error
    else:
        seed(random_seed, rank, start.state.step if start else 0)

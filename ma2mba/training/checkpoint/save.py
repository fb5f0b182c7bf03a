"""Write a rank's share of a checkpoint, and resume an engine from a checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from ma2mba.errors import UserError
from ma2mba.files import require_written
from ma2mba.model.hf.card import CardFacts
from ma2mba.model.pretrained import save_model
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.training.checkpoint import folder as checkpoint
from ma2mba.training.checkpoint.optimizer_files import write_fragments
from ma2mba.training.checkpoint.rng import seed
from ma2mba.training.checkpoint.snapshot import Snapshot
from ma2mba.training.world import World


class ResumedEngine(Protocol):
    """What resuming needs of an engine (`ma2mba.training.engine.Engine`)."""

    world: World

    def load(self, folder: Path) -> None: ...


def write_share(
    snapshot: Snapshot, model: VideoMa2mba, tokenizer_path: Path, card: CardFacts, temporary: Path, rank: int
) -> dict[str, str]:
    """Write, sync and verify what a rank saves. Return the XXH3-128 of the files of weights, by name.

    `card` is what the model card says. Raise OSError if a file cannot be written or the bytes read back differ.
    """
    files = write_fragments(snapshot.fragments, snapshot.steps, rank, temporary / checkpoint.OPTIMIZER)
    checkpoint.write_rank(temporary, rank, checkpoint.RankState(random=snapshot.random, files=files))
    if snapshot.weights is None:
        return {}
    hashes = save_model(model, tokenizer_path, temporary / checkpoint.MODEL, snapshot.weights, card)
    for name, xxh3 in hashes.items():
        require_written(temporary / checkpoint.MODEL / name, xxh3)
    return {f"{checkpoint.MODEL}/{name}": xxh3 for name, xxh3 in hashes.items()}


@contextmanager
def writing_checkpoint(temporary: Path) -> Iterator[None]:
    """Turn an OSError raised while the block writes a checkpoint, such as a full disk, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or temporary}: cannot be written ({error.strerror}). Free disk space, then run the "
            "same command again to resume from the latest checkpoint, which is complete"
        ) from error


def resume(engine: ResumedEngine, start: checkpoint.Start | None, random_seed: int) -> None:
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

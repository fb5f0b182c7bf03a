"""Save checkpoints while training goes on: a snapshot in host memory, which a thread writes.

Who      Every rank writes its share in its own thread. The thread of rank 0 also waits for the shares of all ranks
         (faults/shares.py), publishes the checkpoint and removes old ones.
When     Training stands still for the snapshot, and for the save before if that is still being written. It also waits
         for the last save, for the save after a signal, and for a save that is in progress when the loss is no number.
Errors   of the thread are raised by the next call of a method, so at the next step.
Memory   If the host has no memory for a snapshot, training stands still until this rank's share is on disk.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch.distributed import DistError

from ma2mba.data.sampler import Position
from ma2mba.model.hf.card import CardFacts
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.planner.memory import GIB
from ma2mba.training.checkpoint import folder as checkpoint
from ma2mba.training.checkpoint.save import write_share, writing_checkpoint
from ma2mba.training.checkpoint.snapshot import SnapshotEngine, SnapshotMemory, sizes_of, take_snapshot
from ma2mba.training.faults.shares import Shares
from ma2mba.training.recipe.schema import Recipe

log = logging.getLogger(__name__)


class SavedEngine(SnapshotEngine, Protocol):
    """What a checkpoint needs of an engine (`ma2mba.training.engine.Engine`)."""

    model: VideoMa2mba

    def barrier(self) -> None: ...


@dataclass
class Save:
    """A checkpoint on its way to disk, and how long that took in seconds."""

    step: int
    folder: Path
    began: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    error: Exception | None = None
    thread: threading.Thread | None = None


@dataclass(frozen=True)
class Contents:
    """What a checkpoint says besides the tensors: the fields of TrainerState, and what the model card says.

    `facts` are the fields that do not change during a run, `at` is the next position in the data.
    """

    at: Position
    facts: Mapping[str, Any]
    card: CardFacts


class Saver:
    """Saves the checkpoints of a run. All ranks make one, and call `start` and `finish` together.

    `spare_bytes` is the host memory that this rank may use for snapshots.
    """

    def __init__(self, engine: SavedEngine, recipe: Recipe, tokenizer_path: Path, spare_bytes: float, shares: Shares):
        self._engine, self._recipe, self._tokenizer_path, self._shares = engine, recipe, tokenizer_path, shares
        self._save: Save | None = None
        self._memory = _open_memory(engine, spare_bytes)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *_: object) -> None:
        if self._memory:
            self._memory.close()

    def start(self, step: int, contents: Contents, *, last: bool) -> None:
        """Begin to save the state after `step` steps. The save before must be finished.

        The `last` save of a run does not wait for memory. Raise UserError if the disk is full or not writable.
        """
        run, world = self._recipe.run_folder, self._engine.world
        save = Save(step, run / checkpoint.CHECKPOINTS / f"step-{step:06d}")
        temporary = checkpoint.temporary_folder(run, step)
        if world.rank == 0:
            with writing_checkpoint(temporary):
                checkpoint.clear_temporary(run)
                temporary.mkdir(parents=True)
        self._engine.barrier()
        memory = self._memory if self._memory and self._memory.ready(wait=not last) else None
        snapshot = take_snapshot(self._engine, memory)

        def write() -> dict[str, str]:
            model, rank = self._engine.model, world.rank
            return write_share(snapshot, model, self._tokenizer_path, contents.card, temporary, rank)

        hashed = None
        if memory is None:
            with self._telling_failure(), writing_checkpoint(temporary):
                hashed = write()

        def write_and_publish() -> None:
            try:
                with self._telling_failure(), writing_checkpoint(temporary):
                    self._publish(save, contents, write() if hashed is None else hashed)
            except Exception as error:
                save.error = error

        save.thread = threading.Thread(target=write_and_publish, name="ma2mba-save", daemon=True)
        save.thread.start()
        self._save = save

    def finished(self) -> Save | None:
        """Return the save that has finished since the last call, None if there is none.

        Raise the error that ended it.
        """
        save = self._save
        if save is None or save.thread is None or save.thread.is_alive():
            return None
        self._save = None
        if save.error:
            raise save.error
        return save

    def wait(self, seconds: float | None = None) -> None:
        """Wait until this rank's thread has ended, at most `seconds`. Raise no error of the thread."""
        if self._save and self._save.thread:
            self._save.thread.join(seconds)

    def finish(self) -> Save | None:
        """Wait until the checkpoint is complete, and return what `finished` returns. All ranks call it."""
        self.wait()
        save = self.finished()
        self._engine.barrier()
        return save

    @contextmanager
    def _telling_failure(self) -> Iterator[None]:
        """Tell rank 0 of an error in the block: it waits for this rank's share."""
        try:
            yield
        except Exception:
            with suppress(DistError):  # rank 0 keeps the store and may have ended
                self._shares.failed()
            raise

    def _publish(self, save: Save, contents: Contents, hashed: Mapping[str, str]) -> None:
        """Make the checkpoint the latest one, when all ranks have written their shares. Other ranks announce theirs."""
        self._shares.written(save.step)
        if self._engine.world.rank == 0:
            self._shares.wait(save.step)
            run, keep = self._recipe.run_folder, self._recipe.checkpoint
            checkpoint.publish(run, save.step, contents.at, contents.facts, hashed)
            checkpoint.prune(save.folder, keep.keep_last, keep.keep_every)
        save.seconds = time.perf_counter() - save.began


def _open_memory(engine: SnapshotEngine, spare_bytes: float) -> SnapshotMemory | None:
    """Return memory for snapshots, None if they do not fit."""
    sizes = sizes_of(engine)
    needed = sum(sizes.values())
    if needed <= spare_bytes:
        log.debug("saves: copied to %.2f GiB of host memory, and written while training goes on", needed / GIB)
        return SnapshotMemory(sizes, engine.world.device)
    log.info(
        "saves: training waits until they are on disk, because a copy of rank 0 needs %.2f GiB of host memory and "
        "%.2f GiB are free",
        needed / GIB,
        max(0.0, spare_bytes) / GIB,
    )
    return None

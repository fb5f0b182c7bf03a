"""Checkpoints: RUN/checkpoints/step-000123 with model/ (portable), deepspeed/ and trainer.json; `latest` names one.

A checkpoint is written under a temporary name by all ranks, renamed when all are done, and named by `latest` after
that: a run that is killed at any moment goes on from a whole one. The run folder must be one that all ranks see.
"""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ma2mba.data.sampler import Position
from ma2mba.errors import UserError
from ma2mba.shards.integrity import atomic_write, fsync
from ma2mba.training.recipe import PART_NAMES, Recipe
from ma2mba.training.world import World, ZeroPolicy

CHECKPOINTS, LATEST, MODEL, DEEPSPEED, STATE = "checkpoints", "latest", "model", "deepspeed", "trainer.json"
TAG = re.compile(r"step-(\d{6,})")


class TrainerState(BaseModel):
    """trainer.json: the place in training, what it belongs to, and the bytes of every other file of the checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    epoch: int
    cursor: int
    ranks: int
    zero_stage: int
    dtype: str
    data_fingerprint: str
    recipe: dict[str, Any]
    files: dict[str, int]


@dataclass(frozen=True)
class Start:
    """A whole checkpoint to go on from."""

    folder: Path
    state: TrainerState

    def check(self, recipe: Recipe, world: World, policy: ZeroPolicy, data_fingerprint: str) -> None:
        """Raises UserError, naming every difference, unless going on gives what an undisturbed run would have."""
        then, now = self.state.recipe, recipe.model_dump(mode="json")
        pairs = {key: (then.get(key), now[key]) for key in ("stage", "seed", "order", "global_batch")}
        pairs["trainable"] = (_trained(then["trainable"]), _trained(now["trainable"]))
        pairs["precision"] = (self.state.dtype, str(world.dtype(recipe.precision)))
        pairs["number of ranks"] = (self.state.ranks, world.size)
        pairs["stage of zero_config"] = (self.state.zero_stage, policy.stage)
        pairs["data (fingerprint)"] = (self.state.data_fingerprint, data_fingerprint)
        changed = [f"{key}: {new} now, {old} then" for key, (old, new) in pairs.items() if old != new]
        if changed:
            raise UserError(
                f"{self.folder}: was trained otherwise; put it back, or start a new run with "
                f"init_from={self.folder / MODEL}" + "".join(f"\n  {line}" for line in changed)
            )


def find_start(recipe: Recipe) -> Start | None:
    """What `resume` asks for: auto (the run's latest, None for a new run), none (the run must be new), or a folder.

    The folder is a checkpoint's or a run's. Raises UserError when it is missing or incomplete, or when the run has gone
    on from it already.
    """
    newest = latest(recipe.run_folder)
    if recipe.resume == "none":
        _refuse_stray(recipe.run_folder / CHECKPOINTS)
        if newest:
            raise UserError(
                f"{recipe.run_folder}: has checkpoints already; take another run folder, or resume=auto to go on"
            )
        return None
    if recipe.resume == "auto":
        _refuse_stray(recipe.run_folder / CHECKPOINTS)
        return read(newest) if newest else None
    folder = Path(recipe.resume)
    if not folder.is_dir():
        raise UserError(f"resume: {folder} does not exist; name a checkpoint or run folder, auto or none")
    start = read(latest(folder) or folder)
    if newest and read(newest).state.step > start.state.step:
        raise UserError(
            f"resume: {recipe.run_folder} has gone on to {newest.name}; to branch off {folder}, set run to a new folder"
        )
    return start


def _refuse_stray(folder: Path) -> None:
    stray = sorted(folder.glob("step-*"))
    if stray and not (folder / LATEST).exists():
        raise UserError(
            f"{folder}: has checkpoints but no file {LATEST}; choose one with resume={stray[-1]}, "
            "or take another run folder"
        )


def latest(run: Path) -> Path | None:
    """The checkpoint that a run folder's `latest` names, not yet checked; None when there is no `latest`.

    Raises UserError when it does not hold a checkpoint's name.
    """
    folder = run / CHECKPOINTS
    try:
        tag = (folder / LATEST).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    if not TAG.fullmatch(tag):
        raise UserError(f"{folder / LATEST}: holds {tag!r}, not the name of a checkpoint; write one of those beside it")
    return folder / tag


def read(folder: Path) -> Start:
    """Read a checkpoint. Raises UserError when it or one of its files is missing or cut off."""
    try:
        state = TrainerState.model_validate_json((folder / STATE).read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(p.name for p in folder.parent.glob("step-*") if (p / STATE).is_file())) or "none"
        raise UserError(
            f"{folder}: not a whole checkpoint ({STATE}: {error.strerror}); resume from another (there: {known})"
        ) from error
    except ValidationError as error:
        raise UserError(
            f"{folder / STATE}: damaged ({error.errors()[0]['msg']}); resume from another checkpoint"
        ) from error
    sizes = _sizes(folder)
    wrong = [name for name, size in state.files.items() if sizes.get(name) != size]
    if wrong:
        raise UserError(f"{folder}: {len(wrong)} files are missing or cut off (first {wrong[0]}); resume from another")
    return Start(folder, state)


def model_folder(source: str | Path) -> Path:
    """The model folder of a run's latest checkpoint, of a checkpoint, or itself. Raises UserError if missing."""
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(f"{folder}: does not exist; name the folder of a run that has a checkpoint, or of a model")
    if newest := latest(folder):
        return read(newest).folder / MODEL
    return folder / MODEL if (folder / MODEL).is_dir() else folder


def temporary_folder(run: Path, step: int) -> Path:
    """Where the ranks write a checkpoint before it is whole."""
    return run / CHECKPOINTS / f".step-{step:06d}.tmp"


def clear_temporary(run: Path) -> None:
    """Remove what killed saves have left behind."""
    for leftover in (run / CHECKPOINTS).glob(".step-*.tmp"):
        shutil.rmtree(leftover)


def publish(run: Path, step: int, keep_last: int | None, at: Position, facts: Mapping[str, Any]) -> Path:
    """Make a temporary checkpoint, whole by now, the run's latest; remove all but the newest `keep_last`. Rank 0 only.

    `facts` are the other fields of TrainerState. Returns the checkpoint's folder.
    """
    temporary, folder = temporary_folder(run, step), run / CHECKPOINTS / f"step-{step:06d}"
    for path in temporary.rglob("*"):
        fsync(path)
    state = TrainerState(step=step, epoch=at.epoch, cursor=at.cursor, files=_sizes(temporary), **facts)
    with atomic_write(temporary / STATE) as file:
        file.write(state.model_dump_json(indent=2) + "\n")
    if folder.exists():  # left by a run that was killed before `latest` named it
        shutil.rmtree(folder)
    os.replace(temporary, folder)
    fsync(folder.parent)
    with atomic_write(folder.parent / LATEST) as file:
        file.write(folder.name + "\n")
    if keep_last:
        _prune(folder, keep_last)
    return folder


def _prune(newest: Path, keep_last: int) -> None:
    steps = {int(match[1]): p for p in newest.parent.iterdir() if (match := TAG.fullmatch(p.name))}
    for step in sorted(steps)[:-keep_last]:
        if steps[step] != newest:
            shutil.rmtree(steps[step])


def _sizes(folder: Path) -> dict[str, int]:
    return {
        str(p.relative_to(folder)): p.stat().st_size
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != STATE
    }


def _trained(trainable: Mapping[str, float | None]) -> list[str]:
    return [part for part in PART_NAMES if trainable.get(part) is not None]

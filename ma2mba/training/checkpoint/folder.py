"""Checkpoints: RUN/checkpoints/step-000123; `latest` names one.

    model/          portable weights
    optimizer/      fp32 weights and moments, by parameter, in files of each rank (optimizer_files.py)
    ranks/          for each rank its random generators, and the size and hash of the files that it wrote
    trainer.json    the place in training, what it belongs to, and the size and hash of every file above
    trainer.json.xxh3

A checkpoint is written under a temporary name by all ranks, renamed when all are done, and named by `latest` after
that: a run that is killed at any moment goes on from a whole one. The run folder must be one that all ranks see.
"""

import errno
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from ma2mba.data.sampler import Position
from ma2mba.errors import UserError
from ma2mba.files import atomic_write, fsync, write_checked, xxh3_file
from ma2mba.shards.manifest import FileEntry, file_entry
from ma2mba.training.checkpoint.rng import RandomState
from ma2mba.training.recipe.schema import PART_NAMES, Recipe
from ma2mba.training.world import World

CHECKPOINTS, LATEST = "checkpoints", "latest"
MODEL, OPTIMIZER, RANKS, STATE = "model", "optimizer", "ranks", "trainer.json"
STATE_HASH = f"{STATE}.xxh3"
TAG = re.compile(r"step-(\d{6,})")


class Damaged(UserError):
    """A folder is not a whole checkpoint."""


class TrainerState(BaseModel):
    """trainer.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    epoch: int
    cursor: int
    ranks: int
    zero_stage: int
    dtype: str
    data_fingerprint: str
    recipe: dict[str, Any]
    code: dict[str, str | None]
    files: list[FileEntry]


class RankState(BaseModel):
    """ranks/rank-00000.json: `files` are those of optimizer/ that the rank wrote, as it meant them to be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    random: RandomState
    files: list[FileEntry]


@dataclass(frozen=True)
class Start:
    """A whole checkpoint to go on from."""

    folder: Path
    state: TrainerState

    def check(self, recipe: Recipe, world: World, data_fingerprint: str) -> None:
        """Raises UserError, naming every difference, unless going on gives what an undisturbed run would have."""
        then, now = self.state.recipe, recipe.model_dump(mode="json")
        pairs = {key: (then.get(key), now[key]) for key in ("stage", "seed", "order", "global_batch")}
        pairs["trainable"] = (_trained(then["trainable"]), _trained(now["trainable"]))
        pairs["precision"] = (self.state.dtype, str(world.dtype(recipe.precision)))
        pairs["data (fingerprint)"] = (self.state.data_fingerprint, data_fingerprint)
        changed = [f"{key}: {new} now, {old} then" for key, (old, new) in pairs.items() if old != new]
        if changed:
            raise UserError(
                f"{self.folder}: was trained otherwise; put it back, or start a new run with "
                f"init_from={self.folder / MODEL}" + "".join(f"\n  {line}" for line in changed)
            )

    def random_of(self, rank: int) -> RandomState | None:
        """The generators that a rank had; None when there were fewer ranks."""
        path = self.folder / RANKS / _rank_file(rank)
        return RankState.model_validate_json(path.read_bytes()).random if path.is_file() else None


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


def read(folder: Path, *, hashes: bool = False) -> Start:
    """Read a checkpoint. Raises UserError, naming those beside it that are whole, unless it is whole itself.

    Whole: every file is there in its size; with `hashes` every byte of it is as it was written.
    """
    try:
        return _read(folder, hashes)
    except Damaged as error:
        whole = ", ".join(p.name for p in sorted(folder.parent.glob("step-*")) if p != folder and is_whole(p))
        raise UserError(f"{error}; resume from another checkpoint (whole there: {whole or 'none'})") from error


def _read(folder: Path, hashes: bool) -> Start:
    try:
        content = (folder / STATE).read_bytes()
        noted = (folder / STATE_HASH).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(f"{folder}: not a whole checkpoint ({error})") from error
    if noted != _hash_line(content):
        raise Damaged(f"{folder / STATE}: damaged (its hash is not that of {STATE_HASH})")
    try:
        state = TrainerState.model_validate_json(content)
    except ValidationError as error:
        raise Damaged(f"{folder / STATE}: of another version ({error.errors()[0]['msg']})") from error
    for entry in state.files:
        path = folder / entry.name
        size = path.stat().st_size if path.is_file() else None
        if size != entry.bytes:
            raise Damaged(f"{path}: is missing" if size is None else f"{path}: has {size} bytes, not {entry.bytes}")
        if hashes and xxh3_file(path) != entry.xxh3:
            raise Damaged(f"{path}: damaged (its hash differs from {STATE})")
    return Start(folder, state)


def is_whole(folder: Path) -> bool:
    """Whether a folder is a checkpoint of which every byte is as it was written."""
    try:
        _read(folder, hashes=True)
    except Damaged:
        return False
    return True


def model_folder(source: str | Path) -> Path:
    """The model folder of a run's latest checkpoint, of a checkpoint, or itself. Raises UserError if missing."""
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(f"{folder}: does not exist; name the folder of a run that has a checkpoint, or of a model")
    if newest := latest(folder):
        return read(newest).folder / MODEL
    return folder / MODEL if (folder / MODEL).is_dir() else folder


def whole_checkpoint(run: Path, step: int | None = None) -> Path:
    """Return a run's latest checkpoint, or the checkpoint of a step, after checking the sizes of its files.

    Raises UserError, naming the steps that exist, if there is none, and if the checkpoint is not whole.
    """
    folder = run / CHECKPOINTS
    if not folder.is_dir():
        raise UserError(f"{run}: not a run folder (it has no {CHECKPOINTS}/). Give the run= folder of a training stage")
    steps = {int(match[1]): path for path in folder.iterdir() if (match := TAG.fullmatch(path.name))}
    chosen = latest(run) if step is None else steps.get(step)
    if chosen is None:
        missing = "finished checkpoint" if step is None else f"checkpoint of step {step}"
        known = ", ".join(map(str, sorted(steps))) or "none"
        raise UserError(f"{run}: no {missing}. Train longer, or choose --step from the existing steps: {known}")
    return read(chosen).folder


def temporary_folder(run: Path, step: int) -> Path:
    """Where the ranks write a checkpoint before it is whole."""
    return run / CHECKPOINTS / f".step-{step:06d}.tmp"


def clear_temporary(run: Path) -> None:
    """Remove what killed saves have left behind."""
    for leftover in (run / CHECKPOINTS).glob(".step-*.tmp"):
        shutil.rmtree(leftover)


def write_rank(temporary: Path, rank: int, state: RankState) -> None:
    """Leave a rank's part of a checkpoint, after the files that it names."""
    path = temporary / RANKS / _rank_file(rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checked(path, state.model_dump_json().encode() + b"\n")


def publish(run: Path, step: int, at: Position, facts: Mapping[str, Any]) -> Path:
    """Make a temporary checkpoint, written and synced by now, the run's latest. Rank 0 only.

    `facts` are the other fields of TrainerState. Returns the checkpoint's folder. Raises OSError when a file is not as
    the rank that wrote it meant it to be.
    """
    temporary, folder = temporary_folder(run, step), run / CHECKPOINTS / f"step-{step:06d}"
    state = TrainerState(step=step, epoch=at.epoch, cursor=at.cursor, files=_entries(temporary), **facts)
    content = state.model_dump_json(indent=2).encode() + b"\n"
    write_checked(temporary / STATE, content)
    write_checked(temporary / STATE_HASH, _hash_line(content).encode())
    for path in (temporary, *temporary.rglob("*")):
        if path.is_dir():
            fsync(path)
    if folder.exists():  # left by a run that was killed before `latest` named it, or damaged
        _remove(folder)
    os.replace(temporary, folder)
    fsync(folder.parent)
    with atomic_write(folder.parent / LATEST) as file:
        file.write(folder.name + "\n")
    return folder


def prune(newest: Path, keep_last: int | None, keep_every: int | None) -> None:
    """Remove all checkpoints but the newest `keep_last` and those whose step is a multiple of `keep_every`."""
    steps = {int(match[1]): p for p in newest.parent.iterdir() if (match := TAG.fullmatch(p.name))}
    for step in sorted(steps)[:-keep_last] if keep_last else []:
        if steps[step] != newest and not (keep_every and step % keep_every == 0):
            _remove(steps[step])


def _remove(folder: Path) -> None:
    """Take a checkpoint out of sight at once, then its files one by one."""
    hidden = folder.with_name(f".{folder.name}.old.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(folder, hidden)
    shutil.rmtree(hidden)


def _entries(folder: Path) -> list[FileEntry]:
    """Every file's size and hash: as the ranks noted, of the others as read."""
    noted = {
        f"{OPTIMIZER}/{entry.name}": entry
        for path in (folder / RANKS).glob("rank-*.json")
        for entry in RankState.model_validate_json(path.read_bytes()).files
    }
    entries = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if (entry := noted.pop(name, None)) is None:
            fsync(path)
            entry = file_entry(folder, name)
        elif entry.bytes != path.stat().st_size:
            raise OSError(errno.EIO, "is not as the rank wrote it", str(path))
        entries.append(entry.model_copy(update={"name": name}))
    if noted:
        raise OSError(errno.ENOENT, "was written by another rank and is not seen here", str(folder / min(noted)))
    return entries


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def _hash_line(content: bytes) -> str:
    return xxhash.xxh3_128(content).hexdigest() + "\n"


def _trained(trainable: Mapping[str, float | None]) -> list[str]:
    return [part for part in PART_NAMES if trainable.get(part) is not None]

"""Checkpoint folders: RUN/checkpoints/step-000123. The file RUN/checkpoints/latest holds the name of the latest.

    model/             portable weights
    optimizer/         fp32 weights and moments of each parameter, in files of each rank (optimizer_files.py)
    ranks/             each rank's random number generators, and the size and hash of the files that it wrote
    trainer.json       the position in training, the recipe, the data, and the size and hash of every file above
    trainer.json.xxh3  the hash of trainer.json

All ranks write a checkpoint to a temporary folder. Rank 0 renames the folder when all are done, and then updates
`latest`. A run that is killed at any moment therefore resumes from a complete checkpoint. All ranks must see the same
run folder.
"""

import errno
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ma2mba.data.sampler import Position
from ma2mba.errors import UserError
from ma2mba.files import atomic_write, fsync, fsync_all, inside, read_bounded, write_checked, xxh3_file
from ma2mba.model.base_config import problem
from ma2mba.model.run_folder import CHECKPOINTS, LATEST, MODEL, TAG, TAG_BYTES, latest
from ma2mba.shards.manifest import FileEntry, file_entry
from ma2mba.text import parse_json, shorten
from ma2mba.training.checkpoint.rng import RandomState
from ma2mba.training.recipe.schema import COMPONENTS, Recipe
from ma2mba.training.world import World

log = logging.getLogger(__name__)
OPTIMIZER, RANKS, STATE = "optimizer", "ranks", "trainer.json"
STATE_HASH = f"{STATE}.xxh3"
RUN_ENTRIES = (
    CHECKPOINTS,
    "recipe.yaml",
    "metrics.jsonl",
    "tensorboard",
    "replay",
    "failures",
    "stuck",
    "alive",
    "lock",
)
"""What training writes in a run folder."""
READ_AT_ONCE = 8
"""Files whose hashes are computed at a time. One core hashes 8 GB/s; a checkpoint may have 40 GB."""
STATE_BYTES = 8 << 20
"""Bytes of the largest accepted trainer.json or file in ranks/."""
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Damaged(UserError):
    """A folder is not a complete, undamaged checkpoint."""


class TrainerState(BaseModel):
    """The content of trainer.json. `epoch` and `cursor` are a `Position` in the data.

    `data_contents` are the hashes of `Dataset.contents`; None in checkpoints of older versions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: Count
    epoch: Count
    cursor: Count
    ranks: Count
    zero_stage: Count
    dtype: str
    data_fingerprint: str
    data_contents: list[Digest] | None = None
    recipe: dict[str, Any]
    code: dict[str, str | None]
    files: list[FileEntry]


class RankState(BaseModel):
    """The content of ranks/rank-00000.json. `files` are the rank's files in optimizer/, with the hashes it computed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    random: RandomState
    files: list[FileEntry]


Content = TypeVar("Content", TrainerState, RankState)


@dataclass(frozen=True)
class Start:
    """A complete checkpoint to resume from."""

    folder: Path
    state: TrainerState

    def check(self, recipe: Recipe, world: World, data_fingerprint: str) -> None:
        """Raise UserError, listing all differences, if a resumed run would differ from an uninterrupted run."""
        saved, now = self.state.recipe, recipe.model_dump(mode="json")
        pairs = {key: (saved.get(key), now[key]) for key in ("stage", "seed", "order", "global_batch")}
        pairs["trainable"] = (_trained(saved.get("trainable")), _trained(now["trainable"]))
        pairs["precision"] = (self.state.dtype, str(world.dtype(recipe.precision)))
        pairs["data (fingerprint)"] = (self.state.data_fingerprint, data_fingerprint)
        changed = [
            f"{key}: {new} now, {shorten(str(old))} in the checkpoint"
            for key, (old, new) in pairs.items()
            if old != new
        ]
        if changed:
            raise UserError(
                f"{self.folder}: has different settings. Restore them, or start a new run with "
                f"init_from={self.folder / MODEL}" + "".join(f"\n  {line}" for line in changed)
            )

    def check_contents(self, folders: Sequence[Path], contents: Sequence[str]) -> None:
        """Raise UserError, naming the folders, if shards hold other answers, labels or pictures than before."""
        saved = self.state.data_contents
        if saved is None:
            log.info("%s: does not record what the shards hold, so that changed shards are not detected", self.folder)
            return
        if _total(saved) == _total(contents):
            return
        changed = [str(folder) for folder, content in zip(folders, contents, strict=True) if content not in saved]
        raise UserError(
            f"{', '.join(changed) or 'data'}: other answers, labels or pictures under the same sample ids than when "
            f"{self.folder} was written. Restore these shards, or train in a new run folder with "
            f"init_from={self.folder / MODEL}"
        )

    def random_of(self, rank: int) -> RandomState | None:
        """Return the random number generators of a rank; None if the checkpoint has fewer ranks."""
        path = inside(self.folder, f"{RANKS}/{_rank_file(rank)}", self.folder)
        return _parse(RankState, path, read_bounded(path, STATE_BYTES)).random if path.is_file() else None


def check_run_folder(run: Path) -> None:
    """Raise UserError if an entry that training writes is a symbolic link that leads out of the run folder."""
    for name in RUN_ENTRIES:
        inside(run, name, run)


def read(folder: Path, *, hashes: bool = False) -> Start:
    """Read a checkpoint. Raise UserError, naming the run's complete checkpoints, if this one is damaged or incomplete.

    Checks that every file exists and has its size, and with `hashes` also the hash of every file.
    """
    try:
        return _read(folder, hashes)
    except Damaged as error:
        others = ", ".join(p.name for p in steps_in(folder.parent).values() if p != folder and is_complete(p))
        raise UserError(f"{error}. Resume from another checkpoint (complete: {others or 'none'})") from error


def _read(folder: Path, hashes: bool) -> Start:
    content, stored_hash = _content(folder, STATE, STATE_BYTES), _content(folder, STATE_HASH, TAG_BYTES)
    if stored_hash != _hash_line(content).encode():
        raise Damaged(f"{folder / STATE}: damaged (its hash differs from {STATE_HASH})")
    state = _parse(TrainerState, folder / STATE, content)
    if (tag := TAG.fullmatch(folder.name)) and int(tag[1]) != state.step:
        raise Damaged(f"{folder / STATE}: is of step {state.step}, not of {folder.name}")
    if len({entry.name for entry in state.files}) < len(state.files):
        raise Damaged(f"{folder / STATE}: lists a file twice")
    paths = []
    for entry in state.files:
        path = inside(folder, entry.name, folder / STATE)
        size = path.stat().st_size if path.is_file() else None
        if size != entry.bytes:
            found = "is missing" if size is None else f"has {size} bytes instead of {entry.bytes}"
            raise Damaged(f"{path}: {found}")
        paths.append(path)
    if hashes:
        _require_hashes(paths, [entry.xxh3 for entry in state.files])
    return Start(folder, state)


def _require_hashes(paths: Sequence[Path], hashes: Sequence[str]) -> None:
    """Raise Damaged for the first file whose hash differs. Several files are read at a time."""
    with ThreadPoolExecutor(READ_AT_ONCE) as threads:
        for path, found, expected in zip(paths, threads.map(xxh3_file, paths), hashes, strict=True):
            if found != expected:
                raise Damaged(f"{path}: damaged (its hash differs from {STATE})")


def _content(folder: Path, name: str, most: int) -> bytes:
    path = inside(folder, name, folder)
    if not path.is_file():
        raise Damaged(f"{folder}: not a complete checkpoint ({name} is missing)")
    return read_bounded(path, most)


def _parse(kind: type[Content], path: Path, content: bytes) -> Content:
    """Return the content of a JSON file of a checkpoint. Raise Damaged if it is not what this version writes."""
    try:
        return kind.model_validate(parse_json(content))
    except ValidationError as error:
        raise Damaged(f"{path}: written by another version ({problem(error)})") from error
    except ValueError as error:
        raise Damaged(f"{path}: not JSON ({error})") from error


def is_complete(folder: Path) -> bool:
    """Return True if a folder is a checkpoint with all files, and every file has its hash."""
    try:
        _read(folder, hashes=True)
    except UserError:
        return False
    return True


def model_folder(source: str | Path) -> Path:
    """Return the model folder of a run's latest checkpoint, of a checkpoint, or `source` if it is a model folder.

    Raise UserError if `source` does not exist.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(f"{folder}: does not exist. Give the folder of a run, a checkpoint or a model")
    if newest := latest(folder):
        return inside(folder, str((read(newest).folder / MODEL).relative_to(folder)), newest)
    return inside(folder, MODEL, folder) if (folder / MODEL).is_dir() else folder


def steps_in(folder: Path) -> dict[int, Path]:
    """Return the checkpoints in a folder RUN/checkpoints by step, in ascending order; {} if there is no such folder."""
    found = {int(match[1]): path for path in folder.glob("step-*") if (match := TAG.fullmatch(path.name))}
    return dict(sorted(found.items()))


def find_checkpoint(run: Path, step: int | None = None) -> Path:
    """Return a run's latest checkpoint, or the checkpoint of `step`. Checks the sizes of its files.

    Raise UserError if there is no such checkpoint, naming the steps that exist, or if it is incomplete.
    """
    folder = run / CHECKPOINTS
    if not folder.is_dir():
        raise UserError(f"{run}: not a run folder (it has no {CHECKPOINTS}/). Give the run= folder of a training stage")
    steps = steps_in(folder)
    chosen = latest(run) if step is None else steps.get(step)
    if chosen is None:
        missing = "finished checkpoint" if step is None else f"checkpoint of step {step}"
        known = ", ".join(map(str, steps)) or "none"
        raise UserError(f"{run}: no {missing}. Train longer, or choose --step from the existing steps: {known}")
    return read(inside(run, f"{CHECKPOINTS}/{chosen.name}", run)).folder


def temporary_folder(run: Path, step: int) -> Path:
    """Return the folder to which the ranks write a checkpoint until it is complete."""
    return run / CHECKPOINTS / f".step-{step:06d}.tmp"


def unfinished_in(folder: Path) -> list[int]:
    """Return the steps of the interrupted saves in a folder RUN/checkpoints."""
    names = (path.name.removeprefix(".").removesuffix(".tmp") for path in folder.glob(".step-*.tmp"))
    return [int(match[1]) for name in names if (match := TAG.fullmatch(name))]


def clear_temporary(run: Path) -> None:
    """Remove the temporary folders of interrupted saves."""
    for leftover in (run / CHECKPOINTS).glob(".step-*.tmp"):
        shutil.rmtree(leftover)


def write_rank(temporary: Path, rank: int, state: RankState) -> None:
    """Write a rank's file in ranks/. The files that it names must exist already."""
    path = temporary / RANKS / _rank_file(rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checked(path, state.model_dump_json().encode() + b"\n")


def publish(
    run: Path, step: int, at: Position, facts: Mapping[str, Any], hashed: Mapping[str, str] | None = None
) -> Path:
    """Make the temporary checkpoint of `step` the run's latest, and return its folder. Only rank 0 calls it.

    All ranks must have written their files. `facts` are the remaining fields of TrainerState. `hashed` has the XXH3-128
    of files that rank 0 has synced and verified, by name. Raise OSError if a file is missing or differs from the one
    that its rank wrote.
    """
    temporary, folder = temporary_folder(run, step), run / CHECKPOINTS / f"step-{step:06d}"
    state = TrainerState(step=step, epoch=at.epoch, cursor=at.cursor, files=_entries(temporary, hashed or {}), **facts)
    content = state.model_dump_json(indent=2).encode() + b"\n"
    write_checked(temporary / STATE, content)
    write_checked(temporary / STATE_HASH, _hash_line(content).encode())
    for path in (temporary, *temporary.rglob("*")):
        if path.is_dir():
            fsync(path)
    if folder.exists():  # damaged, or left by a run that was killed before it updated `latest`
        _remove(folder)
    os.replace(temporary, folder)
    fsync(folder.parent)
    with atomic_write(folder.parent / LATEST) as file:
        file.write(folder.name + "\n")
    return folder


def prune(newest: Path, keep_last: int | None, keep_every: int | None) -> None:
    """Remove old checkpoints. Keep the newest `keep_last` and those whose step is a multiple of `keep_every`."""
    steps = steps_in(newest.parent)
    for step in list(steps)[:-keep_last] if keep_last else []:
        if steps[step] != newest and not (keep_every and step % keep_every == 0):
            _remove(steps[step])


def _remove(folder: Path) -> None:
    """Remove a checkpoint. Hide it first, so that no process reads a half-removed checkpoint."""
    hidden = folder.with_name(f".{folder.name}.old.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(folder, hidden)
    shutil.rmtree(hidden)


def _entries(folder: Path, hashed: Mapping[str, str]) -> list[FileEntry]:
    """Return the size and hash of every file: from ranks/ for optimizer files, `hashed`, or computed."""
    written = {
        f"{OPTIMIZER}/{entry.name}": entry
        for path in (folder / RANKS).glob("rank-*.json")
        for entry in RankState.model_validate_json(path.read_bytes()).files
    }
    written |= {
        name: FileEntry(name=name, bytes=(folder / name).stat().st_size, xxh3=xxh3) for name, xxh3 in hashed.items()
    }
    entries = []
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    fsync_all(path for path in paths if path.relative_to(folder).as_posix() not in written)
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if (entry := written.pop(name, None)) is None:
            entry = file_entry(folder, name)
        elif entry.bytes != path.stat().st_size:
            raise OSError(errno.EIO, "differs from the file that its rank wrote", str(path))
        entries.append(entry.model_copy(update={"name": name}))
    if written:
        raise OSError(errno.ENOENT, "written by another rank but not visible on rank 0", str(folder / min(written)))
    return entries


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def _total(contents: Sequence[str]) -> int:
    """Return the sum of hashes, which does not depend on how samples are distributed over folders."""
    return sum(int(content, 16) for content in contents) % (1 << 128)


def _hash_line(content: bytes) -> str:
    return xxhash.xxh3_128(content).hexdigest() + "\n"


def _trained(trainable: Any) -> list[str]:
    """Return the trained components of a recipe, or of what a checkpoint holds in its place."""
    rates = trainable if isinstance(trainable, Mapping) else {}
    return [component for component in COMPONENTS if rates.get(component) is not None]

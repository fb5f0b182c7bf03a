"""Build one shard: consecutive clips -> one payload file, and the rows of the index for these clips.

A build has many shards; each is built by one process. The notes (JSON) of a shard are written last: a shard without
notes is not finished and will be rebuilt.

Here a clip that cannot be used becomes a Reject: a damaged video or image raises MediaError while it is read
(ma2mba/video/probe.py, decode.py, pictures.py), and `build_shard` notes its reason. `build.finish` writes all rejects
to rejects.jsonl.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_prep.clips import Clip, Reject, parse_reject
from data_prep.recipe import Recipe
from data_prep.sample import build_sample
from data_prep.spool import Spool
from data_prep.tally import Tally
from ma2mba.errors import UserError
from ma2mba.files import atomic_write, inside
from ma2mba.model.conversation import load_tokenizer
from ma2mba.shards.format import IndexRow
from ma2mba.shards.index import read_index, sample_faults
from ma2mba.shards.manifest import FileEntry, file_entry
from ma2mba.shards.writer import PayloadWriter, payload_name, write_index
from ma2mba.text import read_json
from ma2mba.video.errors import MediaError
from ma2mba.video.memory import MEMORY
from ma2mba.video.pool import Task

_REBUILD = "Remove the file: the shard is then built again"
WORK_FOLDER = ".build"
"""Subfolder of the output folder that exists during a build."""


@dataclass(frozen=True)
class Job:
    """What all shards of a build have in common.

    `out`: the output folder. `tokenizer`: an absolute path. `memory`: bytes that decoding may use in each worker.
    """

    out: Path
    recipe: Recipe
    recipe_hash: str
    tokenizer: Path
    memory: int = MEMORY


@dataclass(frozen=True)
class FinishedShard:
    """The notes of a finished shard.

    `payload`: its payload file; None if no sample has frames. `silent_scenes`: scenes without a sampled frame.
    """

    payload: FileEntry | None
    rejects: list[Reject]
    silent_scenes: int


def build_shard(job: Job, task: Task, begin: Callable[[int], None], beat: Callable[[], None]) -> int:
    """Build the shard `task.number` from the clips `task.items` and return the number of rejects.

    Clips in `task.given_up` are rejected unread. `begin` and `beat` are called as `pool.Work` says.
    """
    tokenizer, tally = load_tokenizer(job.tokenizer), Tally(job.out / WORK_FOLDER, task.number, job.recipe.fps)
    rows: list[IndexRow] = []
    rejects: list[Reject] = []
    silent = 0
    with PayloadWriter(job.out, task.number) as writer, Spool(job.out / WORK_FOLDER) as spool:
        for i, clip in enumerate(task.items):
            begin(i)
            tally.begin()
            try:
                if i in task.given_up:
                    raise MediaError(clip.media, task.given_up[i])
                built = build_sample(clip, job.recipe, job.recipe_hash, tokenizer, spool, beat, tally.frame)
            except MediaError as error:
                rejects.append(_reject(clip, error.reason))
                continue
            except MemoryError:
                rejects.append(_reject(clip, f"needs more than {job.memory >> 20} MB of memory"))
                continue
            first = writer.add(clip.sample_id, built.frames, beat)
            rows.append(replace(built.row, file=writer.name if built.frames else "", first_row_group=first))
            silent += built.silent_scenes
            tally.end(len(built.frames), built.row.duration)
        begin(len(task.items))
    payload = file_entry(job.out, writer.name) if any(row.frames for row in rows) else None
    save_finished(job.out, task.number, rows, FinishedShard(payload, rejects, silent))
    return len(rejects)


def _reject(clip: Clip, reason: str) -> Reject:
    return Reject(clip.sample_id, clip.name, clip.where, reason)


def notes_name(shard: int) -> str:
    """Return the name of the notes of a finished shard in the work folder."""
    return f"part-{shard:05d}.json"


def _index_and_notes(out: Path, shard: int) -> tuple[Path, Path]:
    """Return the paths of the two files of a shard in the work folder. Raise OutsideFolder if they lead out of it."""
    notes = inside(out, f"{WORK_FOLDER}/{notes_name(shard)}", out)
    inside(out, os.path.relpath(notes.with_suffix(".parquet"), out), out)
    return notes.with_suffix(".parquet"), notes


def save_finished(out: Path, shard: int, rows: list[IndexRow], finished: FinishedShard) -> None:
    """Write the index rows and the notes of a shard whose payload file is complete: the shard is then finished."""
    index, notes = _index_and_notes(out, shard)
    write_index(index, rows)
    payload = finished.payload.model_dump() if finished.payload else None
    with atomic_write(notes) as file:
        json.dump(
            {"payload": payload, "rejects": [asdict(r) for r in finished.rejects], "silent": finished.silent_scenes},
            file,
        )


def load_finished(out: Path, shard: int) -> FinishedShard | None:
    """Return the notes of a finished shard; None if the shard must be built.

    A shard whose index rows are missing, or whose payload file is missing or has another size, must be built.
    """
    index, notes = _index_and_notes(out, shard)
    try:
        content = read_json(notes)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise
    if not index.is_file():
        return None
    finished = _parse_notes(content, notes, shard)
    if finished.payload:
        path = inside(out, finished.payload.name, notes)
        if not (path.is_file() and path.stat().st_size == finished.payload.bytes):
            return None
    return finished


def _parse_notes(content: Any, notes: Path, shard: int) -> FinishedShard:
    """Convert the content of notes. Raise UserError if `shard` has other notes."""
    try:
        payload = FileEntry.model_validate(content["payload"]) if content["payload"] else None
        if payload and payload.name != payload_name(shard):
            raise ValueError(f"they name the payload {payload.name!r}, not {payload_name(shard)}")
        silent = content["silent"]
        if not isinstance(silent, int) or silent < 0:
            raise ValueError("silent is not a count")
        return FinishedShard(payload, [parse_reject(reject) for reject in content["rejects"]], silent)
    except (ValueError, LookupError, TypeError) as error:
        reason = "their payload is not a file entry" if isinstance(error, ValidationError) else error
        raise UserError(f"{notes}: not the notes of shard {shard} ({reason}). {_REBUILD}") from error


def load_rows(out: Path, shard: int) -> list[IndexRow]:
    """Return the index rows of a finished shard. Raise UserError if they are not rows of this shard."""
    path = _index_and_notes(out, shard)[0]
    try:
        index = read_index(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}). {_REBUILD}") from error
    for sample, what in sample_faults(index):
        raise UserError(f"{path}: sample {sample}: {what}. {_REBUILD}")
    if not index.strings["file"].having({"", payload_name(shard)}).all():
        raise UserError(f"{path}: has samples of another shard. {_REBUILD}")
    return index.rows

"""A part: some consecutive clips that one process turns into one payload file and a fragment of the index.

The fragment's JSON is written last: a part without it is not there, and is built again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data_prep.clips import Clip, Reject
from data_prep.recipe import Recipe
from data_prep.sample import build_sample
from data_prep.spool import Spool
from ma2mba.files import atomic_write
from ma2mba.model.conversation import load_tokenizer
from ma2mba.shards.format import IndexRow
from ma2mba.shards.manifest import FileEntry, file_entry
from ma2mba.shards.writer import PartWriter, read_index, write_index
from ma2mba.video.errors import MediaError
from ma2mba.video.limits import MEMORY

WORK_FOLDER = ".build"


@dataclass(frozen=True)
class Job:
    """What every part of a build shares. `tokenizer` is an absolute path; `memory`: bytes that decoding may take."""

    out: Path
    recipe: Recipe
    recipe_hash: str
    tokenizer: Path
    memory: int = MEMORY


@dataclass(frozen=True)
class Fragment:
    """What is known of a finished part. `payload` is None when no sample of it has frames."""

    payload: FileEntry | None
    rejects: list[Reject]
    silent_scenes: int


def build_part(
    job: Job,
    part: int,
    clips: Sequence[Clip],
    given_up: Mapping[int, str],
    begin: Callable[[int], None],
    beat: Callable[[], None],
) -> int:
    """Build a part; clips in `given_up` (index -> reason) are rejected unseen. Returns the number of rejects.

    `begin(i)` is called before clip i and, with their number, after the last; `beat()` now and then between two.
    """
    tokenizer = load_tokenizer(job.tokenizer)
    rows: list[IndexRow] = []
    rejects: list[Reject] = []
    silent = 0
    with PartWriter(job.out, part) as writer, Spool(job.out / WORK_FOLDER) as spool:
        for i, clip in enumerate(clips):
            begin(i)
            try:
                if i in given_up:
                    raise MediaError(clip.media, given_up[i])
                built = build_sample(clip, job.recipe, job.recipe_hash, tokenizer, spool, beat)
            except MediaError as error:
                rejects.append(Reject(clip.sample_id, clip.name, clip.where, error.reason))
                continue
            except MemoryError:
                reason = f"needs more than {job.memory >> 20} MB of memory"
                rejects.append(Reject(clip.sample_id, clip.name, clip.where, reason))
                continue
            first = writer.add(clip.sample_id, built.frames, beat)
            rows.append(replace(built.row, file=writer.name if built.frames else "", first_row_group=first))
            silent += built.silent_scenes
        begin(len(clips))
    payload = file_entry(job.out, writer.name) if any(row.frames for row in rows) else None
    save_fragment(job.out, part, rows, Fragment(payload, rejects, silent))
    return len(rejects)


def _paths(out: Path, part: int) -> tuple[Path, Path]:
    return out / WORK_FOLDER / f"part-{part:05d}.parquet", out / WORK_FOLDER / f"part-{part:05d}.json"


def save_fragment(out: Path, part: int, rows: list[IndexRow], fragment: Fragment) -> None:
    """Write down a part whose payload is there: from now on it is finished."""
    index, notes = _paths(out, part)
    write_index(index, rows)
    payload = fragment.payload.model_dump() if fragment.payload else None
    with atomic_write(notes) as file:
        json.dump(
            {"payload": payload, "rejects": [asdict(r) for r in fragment.rejects], "silent": fragment.silent_scenes},
            file,
        )


def load_fragment(out: Path, part: int) -> Fragment | None:
    """The fragment of a finished part whose payload has the size that was written; None when it must be built."""
    index, notes = _paths(out, part)
    try:
        content = json.loads(notes.read_bytes())
    except FileNotFoundError:
        return None
    if not index.is_file():
        return None
    payload = FileEntry.model_validate(content["payload"]) if content["payload"] else None
    if payload and not ((out / payload.name).is_file() and (out / payload.name).stat().st_size == payload.bytes):
        return None
    return Fragment(payload, [Reject(**reject) for reject in content["rejects"]], content["silent"])


def load_rows(out: Path, part: int) -> list[IndexRow]:
    """The index rows of a finished part."""
    return read_index(_paths(out, part)[0])

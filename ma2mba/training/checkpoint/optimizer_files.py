"""Write and read the optimizer's state.

Each rank writes its fragments. Any number of ranks under any ZeRO stage can read them.

A file rank-00000-000.safetensors holds the one-dimensional fp32 tensors `weight/NAME`, `exp_avg/NAME` and
`exp_avg_sq/NAME`. Its metadata hold the offset of each fragment in its flattened parameter.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError

from ma2mba.errors import UserError
from ma2mba.files import fsync, inside, require_written
from ma2mba.model.tensor_file import TensorFile, reason_of
from ma2mba.model.tensor_writer import Shard, TensorSpec, in_order, write_shard
from ma2mba.model.weights import is_finite
from ma2mba.shards.manifest import FileEntry
from ma2mba.text import parse_json
from ma2mba.training.checkpoint.zero_state import Fragment

FILE_BYTES = 1 << 30
"""Approximate size of a file: one file is synced and read back while the next one is written."""
ABOUT = "ma2mba"
"""The only metadata key."""


def write_fragments(fragments: Iterable[Fragment], steps: int, rank: int, folder: Path) -> list[FileEntry]:
    """Write this rank's fragments and the number of AdamW's steps, and verify each file. Return the files' entries.

    Tensors may be on any device. Their hashes are computed while they are written. Raise OSError if a file cannot be
    written or the bytes read back differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries, checks = [], []
    with ThreadPoolExecutor(1) as thread:
        for number, batch in enumerate(_file_batches(fragments)):
            entry = _write_file(batch, steps, f"rank-{rank:05d}-{number:03d}.safetensors", folder)
            entries.append(entry)
            checks.append(thread.submit(_sync_and_verify, folder, entry))
        for check in checks:
            check.result()
    return entries


def _write_file(batch: list[Fragment], steps: int, name: str, folder: Path) -> FileEntry:
    tensors = {f"{key}/{f.name}": t for f in batch for key, t in f.tensors.items()}
    about = {"steps": steps, "starts": {f.name: f.start for f in batch}}
    specs = in_order({key: TensorSpec.of(key, t) for key, t in tensors.items()})
    shard, digest = Shard(name, specs, {ABOUT: json.dumps(about)}), xxhash.xxh3_128()
    write_shard(shard, tensors.__getitem__, folder / name, [digest])
    return FileEntry(name=name, bytes=shard.bytes, xxh3=digest.hexdigest())


def _sync_and_verify(folder: Path, entry: FileEntry) -> None:
    fsync(folder / entry.name)
    require_written(folder / entry.name, entry.xxh3)


def _file_batches(fragments: Iterable[Fragment]) -> Iterator[list[Fragment]]:
    """Yield the fragments of each file."""
    batch, size = [], 0
    for fragment in fragments:
        batch.append(fragment)
        size += sum(t.nbytes for t in fragment.tensors.values())
        if size >= FILE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@dataclass(frozen=True)
class _StoredFragment:
    """Elements `start` to `stop` of a flattened parameter, in an open file."""

    file: Any
    start: int
    stop: int


def read_fragments(fragments: Iterable[Fragment], folder: Path) -> int:
    """Fill this rank's fragments from the files of all ranks. Return the number of AdamW's steps.

    Reads only the elements that this rank needs. Raise UserError if a file cannot be read, or if elements are missing,
    NaN or infinite.
    """
    try:
        stored, steps = _index(folder)
        for fragment in fragments:
            _fill(fragment, stored.get(fragment.name, []), folder)
    except (OSError, SafetensorError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{folder}: cannot be read ({reason_of(error)}). Resume from another checkpoint") from error
    return steps


def _index(folder: Path) -> tuple[dict[str, list[_StoredFragment]], int]:
    """Return the stored fragments of each parameter, and the number of AdamW's steps."""
    stored = defaultdict(list)
    steps = 0
    for path in sorted(folder.glob("rank-*.safetensors")):
        file = TensorFile.open(inside(folder, path.name, folder)).handle
        about = parse_json(file.metadata()[ABOUT])
        steps = int(about["steps"])
        for name, start in about["starts"].items():
            (length,) = file.get_slice(f"weight/{name}").get_shape()
            stored[name].append(_StoredFragment(file, int(start), int(start) + length))
    return stored, steps


def _fill(fragment: Fragment, stored: list[_StoredFragment], folder: Path) -> None:
    """Copy the elements of `fragment` from all stored fragments that overlap it."""
    for key, tensor in fragment.tensors.items():
        filled, first, last = 0, fragment.start, fragment.start + len(tensor)
        for source in sorted(stored, key=lambda source: source.start):
            low, high = max(first + filled, source.start), min(last, source.stop)
            if low == first + filled < high:
                values = source.file.get_slice(f"{key}/{fragment.name}")[low - source.start : high - source.start]
                if values.shape != (high - low,) or values.dtype != tensor.dtype:
                    raise ValueError(f"{key}/{fragment.name} has other sizes than weight/{fragment.name}")
                if not is_finite(values):
                    raise UserError(
                        f"{folder}: {key} of {fragment.name} has NaN or infinite values. Resume from another checkpoint"
                    )
                tensor[low - first : high - first].copy_(values)
                filled += high - low
        if filled != len(tensor):
            raise UserError(
                f"{folder}: holds {filled} of the {len(tensor)} elements of {key} of {fragment.name} that this rank "
                "needs. Resume from another checkpoint"
            )

"""The optimizer's state in files: each rank writes its fragments, and any number of ranks of any ZeRO stage reads them.

A file rank-00000-000.safetensors holds `weight/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME`, one-dimensional, and in its
metadata where each fragment begins in its flattened parameter. All fp32.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ma2mba.errors import UserError
from ma2mba.files import write_checked
from ma2mba.shards.manifest import FileEntry
from ma2mba.training.checkpoint.zero_state import Fragment

FILE_BYTES = 1 << 30
"""About how large a file becomes: a rank holds that much twice in host memory while it writes."""
ABOUT = "ma2mba"
"""One key: safetensors writes several in an order that changes from process to process."""


def write_fragments(fragments: Iterable[Fragment], steps: int, rank: int, folder: Path) -> list[FileEntry]:
    """Write this rank's fragments and how many steps AdamW has taken; returns the files, read back and compared.

    Raises OSError when the disk does not take it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, batch in enumerate(_batches(fragments)):
        tensors = {f"{key}/{f.name}": t.cpu().contiguous() for f in batch for key, t in f.tensors.items()}
        about = {"steps": steps, "starts": {f.name: f.start for f in batch}}
        path = folder / f"rank-{rank:05d}-{number:03d}.safetensors"
        content = save(tensors, {ABOUT: json.dumps(about)})
        entries.append(FileEntry(name=path.name, bytes=len(content), xxh3=write_checked(path, content)))
    return entries


def _batches(fragments: Iterable[Fragment]) -> Iterator[list[Fragment]]:
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
class _Piece:
    file: Any
    start: int
    stop: int


def read_fragments(fragments: Iterable[Fragment], folder: Path) -> int:
    """Fill this rank's fragments from the files of all ranks, reading only what it needs; returns AdamW's steps.

    Raises UserError when a file cannot be read or elements are missing.
    """
    try:
        pieces, steps = _index(folder)
        for fragment in fragments:
            _fill(fragment, pieces.get(fragment.name, []), folder)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{folder}: cannot be read ({error}); resume from another checkpoint") from error
    return steps


def _index(folder: Path) -> tuple[dict[str, list[_Piece]], int]:
    pieces = defaultdict(list)
    steps = 0
    for path in sorted(folder.glob("rank-*.safetensors")):
        file = safe_open(path, framework="pt")
        about = json.loads(file.metadata()[ABOUT])
        steps = int(about["steps"])
        for name, start in about["starts"].items():
            (length,) = file.get_slice(f"weight/{name}").get_shape()
            pieces[name].append(_Piece(file, start, start + length))
    return pieces, steps


def _fill(fragment: Fragment, pieces: list[_Piece], folder: Path) -> None:
    for key, tensor in fragment.tensors.items():
        filled, first, last = 0, fragment.start, fragment.start + len(tensor)
        for piece in pieces:
            low, high = max(first, piece.start), min(last, piece.stop)
            if low < high:
                values = piece.file.get_slice(f"{key}/{fragment.name}")[low - piece.start : high - piece.start]
                tensor[low - first : high - first].copy_(values)
                filled += high - low
        if filled != len(tensor):
            raise UserError(
                f"{folder}: holds {filled} of the {len(tensor)} elements of {key} of {fragment.name} that this rank "
                "needs; resume from another checkpoint"
            )

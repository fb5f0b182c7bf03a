"""Read a shard folder: the index at once, frames by row group, every page's checksum verified."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ma2mba.files import xxh3_file
from ma2mba.shards.format import FRAMES_PER_ROW_GROUP, INDEX_FILE, PAYLOAD_FOLDER, TOKENIZER_FILE, IndexRow
from ma2mba.shards.manifest import FileEntry, ShardDamaged, read_manifest
from ma2mba.shards.writer import PayloadHash, read_index

OPEN_FILES = 8
"""Payload files that a reader keeps open."""
_REMEDY = "build the shards again, or copy the file again from where it is whole"


class ShardReader:
    """A finished shard folder. Opening checks the manifest, every file's size, and the content of all but the payload.

    Payload pages are checked as they are read (`verify="pages"`) or all of it on opening too (`"all"`).
    Threads may share one; it pickles to its folder. Raises UserError (ShardDamaged for altered bytes).
    """

    def __init__(self, folder: Path | str, verify: Literal["pages", "all"] = "pages"):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        for entry in self.manifest.files:
            check_file(self.folder, entry, content=verify == "all" or not entry.name.startswith(PAYLOAD_FOLDER))
        try:
            self.rows: list[IndexRow] = read_index(self.folder / INDEX_FILE)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ShardDamaged(f"{self.folder / INDEX_FILE}: cannot be read ({error}); {_REMEDY}") from error
        self._group = FRAMES_PER_ROW_GROUP[self.manifest.kind]
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self):
        return ShardReader, (self.folder,)

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / TOKENIZER_FILE

    def frames(self, row: IndexRow, start: int = 0, stop: int | None = None) -> list[bytes]:
        """Bytes (JPEG or features) of frames [start, stop) of a sample, reading only their row groups.

        Raises IndexError outside 0..row.frames, ShardDamaged naming file and sample when bytes were altered.
        """
        stop = row.frames if stop is None else stop
        if not 0 <= start <= stop <= row.frames:
            raise IndexError(f"frames [{start}, {stop}) of {row.sample_id}, which has {row.frames}")
        if start == stop:
            return []
        first, last = start // self._group, (stop - 1) // self._group
        groups = list(range(row.first_row_group + first, row.first_row_group + last + 1))
        try:
            with self._lock:
                table = self._file(row.file).read_row_groups(groups, columns=["sample_id", "t", "frame"])
        except (OSError, ValueError, IndexError, pa.ArrowException) as error:
            raise self._damaged(row, str(error)) from error
        table = table.slice(start - first * self._group, stop - start)
        times = table.column("t").to_numpy()
        if not np.array_equal(times, row.timestamps[start:stop]) or set(table.column("sample_id").to_pylist()) != {
            row.sample_id
        }:
            raise self._damaged(row, "holds other frames than the index says")
        return table.column("frame").to_pylist()

    def shown_since(self, row: IndexRow, start: int, stop: int) -> np.ndarray:
        """When the pictures of frames [start, stop) came on screen: `pts` of the payload, float64, seconds."""
        first, last = start // self._group, (stop - 1) // self._group
        groups = list(range(row.first_row_group + first, row.first_row_group + last + 1))
        try:
            with self._lock:
                table = self._file(row.file).read_row_groups(groups, columns=["pts"])
        except (OSError, ValueError, IndexError, pa.ArrowException) as error:
            raise self._damaged(row, str(error)) from error
        return table.column("pts").to_numpy()[start - first * self._group :][: stop - start]

    def _file(self, name: str) -> pq.ParquetFile:
        if name not in self._files:
            self._files[name] = pq.ParquetFile(self.folder / name, page_checksum_verification=True, pre_buffer=True)
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(name)
        return self._files[name]

    def _damaged(self, row: IndexRow, reason: str) -> ShardDamaged:
        return ShardDamaged(f"{self.folder / row.file}: sample {row.sample_id} is damaged ({reason}); {_REMEDY}")

    def close(self) -> None:
        """Close the payload files; a later read opens them again."""
        while self._files:
            self._files.popitem()[1].close()


def check_file(folder: Path, entry: FileEntry, *, content: bool) -> None:
    """Raises ShardDamaged unless the file has the manifest's size and, if `content`, its hash."""
    path = folder / entry.name
    try:
        if not path.is_file():
            raise ShardDamaged(f"{path}: named by the manifest but missing; {_REMEDY}")
        if (size := path.stat().st_size) != entry.bytes:
            raise ShardDamaged(f"{path}: {size} bytes, the manifest says {entry.bytes}; {_REMEDY}")
        if content and xxh3_file(path) != entry.xxh3:
            raise ShardDamaged(f"{path}: its content does not match the manifest's checksum; {_REMEDY}")
    except OSError as error:
        raise ShardDamaged(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from error


@dataclass(frozen=True)
class Damage:
    """A file of a shard folder, one of its samples ("" for the file as a whole), and what is wrong with it."""

    file: str
    sample: str
    what: str


def find_damage(folder: Path | str) -> list[Damage]:
    """Re-read every byte of a shard folder; nothing for a sound one.

    Raises UserError when there is no readable manifest to compare with.
    """
    folder = Path(folder)
    manifest, found = read_manifest(folder), list[Damage]()
    for entry in manifest.files:
        try:
            check_file(folder, entry, content=True)
        except ShardDamaged as damage:
            found.append(Damage(entry.name, "", str(damage).removeprefix(f"{folder / entry.name}: ").split("; ")[0]))
    if any(damage.file == INDEX_FILE for damage in found):
        return found
    rows = read_index(folder / INDEX_FILE)
    for row in rows:
        found += _sample_damage(folder, row, FRAMES_PER_ROW_GROUP[manifest.kind])
    if (count := sum(row.frames for row in rows)) != manifest.frames or len(rows) != manifest.samples:
        said = f"{len(rows)} samples and {count} frames, the manifest says {manifest.samples} and {manifest.frames}"
        found.append(Damage(INDEX_FILE, "", said))
    return found


def verify(folder: Path | str) -> list[str]:
    """`find_damage` in words: one line a problem, none for a sound folder."""
    return [
        f"{Path(folder) / damage.file}: {f'sample {damage.sample} ' if damage.sample else ''}{damage.what}"
        for damage in find_damage(folder)
    ]


def _sample_damage(folder: Path, row: IndexRow, group: int) -> list[Damage]:
    lengths = {len(row.frame_positions), len(row.timestamps), row.frames}
    if len(lengths) > 1 or len(row.token_ids) != len(row.supervised):
        return [Damage(INDEX_FILE, row.sample_id, "has columns of different lengths")]
    digest, count, first = PayloadHash(), 0, row.first_row_group
    try:
        if row.frames:
            with pq.ParquetFile(folder / row.file, page_checksum_verification=True) as file:
                for number in range(first, first + -(-row.frames // group)):
                    for data in file.read_row_group(number, columns=["frame"]).column("frame").to_pylist():
                        digest.add(data)
                        count += 1
    except (OSError, ValueError, IndexError, pa.ArrowException) as error:
        return [Damage(row.file, row.sample_id, f"cannot be read ({error})")]
    if count != row.frames or (row.frames and digest.hexdigest() != row.payload_xxh3):
        return [Damage(row.file, row.sample_id, "has other frames than were written")]
    return []

"""Read a shard folder: the whole index on opening, frames by row group. Verifies the checksum of every page read."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ma2mba.files import xxh3_file
from ma2mba.shards.format import FRAMES_PER_ROW_GROUP, INDEX_FILE, PAYLOAD_FOLDER, TOKENIZER_FILE, IndexRow
from ma2mba.shards.manifest import FileEntry, ShardDamaged, read_manifest
from ma2mba.shards.writer import PayloadHash, read_index

OPEN_FILES = 8
"""How many payload files a reader keeps open."""
_REMEDY = "Build the shards again, or copy the file again from an undamaged folder"


class ShardReader:
    """A finished shard folder. Opening it checks the manifest, the size of every file, and the content of all but the
    payload files. Reading frames checks the pages that it reads.

    Threads may share a reader. Pickling keeps only its folder. Raise UserError, or ShardDamaged if bytes were altered.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        for entry in self.manifest.files:
            check_file(self.folder, entry, content=not entry.name.startswith(PAYLOAD_FOLDER))
        try:
            self.rows: list[IndexRow] = read_index(self.folder / INDEX_FILE)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ShardDamaged(f"{self.folder / INDEX_FILE}: cannot be read ({error}). {_REMEDY}") from error
        self._row_group_frames = FRAMES_PER_ROW_GROUP[self.manifest.kind]
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self):
        return ShardReader, (self.folder,)

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / TOKENIZER_FILE

    def frames(self, row: IndexRow, start: int = 0, stop: int | None = None) -> list[bytes]:
        """Return frames [start, stop) of a sample as bytes (JPEG or features). Reads only the row groups it needs.

        Raise IndexError outside 0..row.frames, and ShardDamaged naming file and sample if bytes were altered.
        """
        stop = row.frames if stop is None else stop
        if not 0 <= start <= stop <= row.frames:
            raise IndexError(f"frames [{start}, {stop}) of {row.sample_id}, which has {row.frames}")
        if start == stop:
            return []
        table = self._read(row, start, stop, ["sample_id", "t", "frame"])
        times = table.column("t").to_numpy()
        if not np.array_equal(times, row.timestamps[start:stop]) or set(table.column("sample_id").to_pylist()) != {
            row.sample_id
        }:
            raise self._damaged(row, "its frames differ from the index")
        return table.column("frame").to_pylist()

    def shown_since(self, row: IndexRow, start: int, stop: int) -> np.ndarray:
        """Return the `pts` of frames [start, stop), float64: when each picture appeared, in seconds of the video."""
        return self._read(row, start, stop, ["pts"]).column("pts").to_numpy()

    def _read(self, row: IndexRow, start: int, stop: int, columns: list[str]) -> pa.Table:
        """Read some columns of frames [start, stop) of a sample, at least one frame."""
        size = self._row_group_frames
        first, last = start // size, (stop - 1) // size
        row_groups = list(range(row.first_row_group + first, row.first_row_group + last + 1))
        try:
            with self._lock:
                table = self._file(row.file).read_row_groups(row_groups, columns=columns)
        except (OSError, ValueError, IndexError, pa.ArrowException) as error:
            raise self._damaged(row, str(error)) from error
        return table.slice(start - first * size, stop - start)

    def _file(self, name: str) -> pq.ParquetFile:
        if name not in self._files:
            self._files[name] = pq.ParquetFile(self.folder / name, page_checksum_verification=True, pre_buffer=True)
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(name)
        return self._files[name]

    def _damaged(self, row: IndexRow, reason: str) -> ShardDamaged:
        return ShardDamaged(f"{self.folder / row.file}: sample {row.sample_id} is damaged ({reason}). {_REMEDY}")


def check_file(folder: Path, entry: FileEntry, *, content: bool) -> None:
    """Raise ShardDamaged unless the file has the size in the manifest and, with `content`, also the hash."""
    if problem := _file_problem(folder, entry, content):
        raise ShardDamaged(f"{folder / entry.name}: {problem}. {_REMEDY}")


def _file_problem(folder: Path, entry: FileEntry, content: bool) -> str | None:
    path = folder / entry.name
    try:
        if not path.is_file():
            return "is missing, but the manifest lists it"
        if (size := path.stat().st_size) != entry.bytes:
            return f"has {size} bytes, but the manifest says {entry.bytes}"
        if content and xxh3_file(path) != entry.xxh3:
            return "its content does not match the checksum in the manifest"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


@dataclass(frozen=True)
class Damage:
    """Damage in a shard folder: the file, the sample ("" if the whole file is damaged), and what is wrong."""

    file: str
    sample: str
    what: str


def find_damage(folder: Path | str) -> list[Damage]:
    """Read every byte of a shard folder, and return all damage; [] for an undamaged folder.

    Raise UserError if the manifest cannot be read.
    """
    folder = Path(folder)
    manifest, found = read_manifest(folder), list[Damage]()
    for entry in manifest.files:
        if problem := _file_problem(folder, entry, content=True):
            found.append(Damage(entry.name, "", problem))
    if any(damage.file == INDEX_FILE for damage in found):
        return found
    rows = read_index(folder / INDEX_FILE)
    for row in rows:
        found += _sample_damage(folder, row, FRAMES_PER_ROW_GROUP[manifest.kind])
    if (count := sum(row.frames for row in rows)) != manifest.frames or len(rows) != manifest.samples:
        wrong = f"has {len(rows)} samples and {count} frames, the manifest {manifest.samples} and {manifest.frames}"
        found.append(Damage(INDEX_FILE, "", wrong))
    return found


def _sample_damage(folder: Path, row: IndexRow, row_group_frames: int) -> list[Damage]:
    lengths = {len(row.frame_positions), len(row.timestamps), row.frames}
    if len(lengths) > 1 or len(row.token_ids) != len(row.supervised):
        return [Damage(INDEX_FILE, row.sample_id, "has columns of different lengths")]
    digest, count, first = PayloadHash(), 0, row.first_row_group
    try:
        if row.frames:
            with pq.ParquetFile(folder / row.file, page_checksum_verification=True) as file:
                for number in range(first, first + -(-row.frames // row_group_frames)):
                    for data in file.read_row_group(number, columns=["frame"]).column("frame").to_pylist():
                        digest.add(data)
                        count += 1
    except (OSError, ValueError, IndexError, pa.ArrowException) as error:
        return [Damage(row.file, row.sample_id, f"cannot be read ({error})")]
    if count != row.frames or (row.frames and digest.hexdigest() != row.payload_xxh3):
        return [Damage(row.file, row.sample_id, "its frames differ from the frames that were written")]
    return []

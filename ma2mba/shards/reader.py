"""Read a shard folder: the whole index on opening, frames by row group. Verifies the checksum of every page read."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ma2mba.files import BLOCK_BYTES, xxh3_file
from ma2mba.memory import machine_bytes
from ma2mba.shards.format import FRAMES_PER_ROW_GROUP, INDEX_FILE, REJECTS_FILE, TOKENIZER_FILE, IndexRow
from ma2mba.shards.index import Fault, Index, find_faults, read_index, vocabulary_size
from ma2mba.shards.manifest import FileEntry, Manifest, ShardDamaged, read_manifest
from ma2mba.shards.payload import Layout, Payload, different, read_layout
from ma2mba.shards.writer import PayloadHash

OPEN_FILES = 8
"""How many payload files a reader keeps open."""
LAYOUTS = 1024
"""How many payload files a reader remembers the row groups of: 8 to 300 KB for 64 videos of a minute to an hour."""
Look = Callable[[bytes, Manifest], str]
_REMEDY = "Build the shards again, or copy the file again from an undamaged folder"


class ShardReader:
    """A finished shard folder. Opening it checks the manifest, the size of every file, the content of all but the
    payload files, and that the index says nothing impossible. Reading frames checks the footer of their file, and the
    pages that it reads.

    Threads may share a reader. Pickling keeps only its folder. Raise UserError, or ShardDamaged if bytes were altered.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        for entry in self.manifest.files:
            check_file(self.folder, entry, content=not entry.is_payload)
        try:
            index = _checked_index(self.folder, self.manifest)
        except (OSError, ValueError) as error:
            raise ShardDamaged(f"{self.folder / INDEX_FILE}: cannot be read ({error}). {_REMEDY}") from error
        for sample, what in find_faults(index, self.manifest, _vocabulary(self.folder, self.manifest)):
            raise ShardDamaged(f"{self.folder / INDEX_FILE}: {_named(sample)}{what}. {_REMEDY}")
        self.rows: list[IndexRow] = index.rows
        self.largest_token = int(index.lists["token_ids"].values.max(initial=0))
        self._rows_of = rows_by_file(self.rows)
        self._row_group_frames = FRAMES_PER_ROW_GROUP[self.manifest.kind]
        self._layouts: OrderedDict[str, Layout] = OrderedDict()
        self._files: OrderedDict[str, Payload] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self):
        return ShardReader, (self.folder,)

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / TOKENIZER_FILE

    @property
    def rejected(self) -> int:
        """Return the number of records that the build rejected."""
        if REJECTS_FILE not in {entry.name for entry in self.manifest.files}:
            return 0
        with open(self.folder / REJECTS_FILE, "rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(BLOCK_BYTES), b""))

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
        if problem := different(table, row, start):
            raise self._damaged(row, problem)
        return table.column("frame").to_pylist()

    def shown_since(self, row: IndexRow, start: int, stop: int) -> np.ndarray:
        """Return the `pts` of frames [start, stop), float64: when each picture appeared, in seconds of the video."""
        seconds = self._read(row, start, stop, ["pts"]).column("pts").to_numpy()
        if not np.isfinite(seconds).all():
            raise self._damaged(row, "pts is not a number of seconds")
        return seconds

    def _read(self, row: IndexRow, start: int, stop: int, columns: list[str]) -> pa.Table:
        """Read some columns of frames [start, stop) of a sample, at least one frame."""
        size = self._row_group_frames
        first, last = start // size, (stop - 1) // size
        row_groups = list(range(row.first_row_group + first, row.first_row_group + last + 1))
        try:
            with self._lock:
                table = self._file(row.file).read(row_groups, columns)
        except (OSError, ValueError) as error:
            raise self._damaged(row, str(error)) from error
        return table.slice(start - first * size, stop - start)

    def _file(self, name: str) -> Payload:
        if name not in self._files:
            if name not in self._layouts:
                self._layouts[name] = read_layout(self.folder / name, self._rows_of[name], self.manifest)
                if len(self._layouts) > LAYOUTS:
                    self._layouts.popitem(last=False)
            self._files[name] = Payload(self.folder / name, self._layouts[name], self.manifest)
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
        if not entry.is_payload and size > machine_bytes():
            return f"has {size:,} bytes, more than the memory of this machine"
        if content and xxh3_file(path) != entry.xxh3:
            return "its content does not match the checksum in the manifest"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def _checked_index(folder: Path, manifest: Manifest) -> Index:
    """Read the index. Raise ValueError or OSError if it is not one, or if the manifest does not list it."""
    if INDEX_FILE not in {entry.name for entry in manifest.files}:
        raise ValueError("the manifest does not list it")
    return read_index(folder / INDEX_FILE)


def _vocabulary(folder: Path, manifest: Manifest) -> int | None:
    """Return the size of the folder's vocabulary, None without a tokenizer. Raise ShardDamaged if it is not JSON."""
    if TOKENIZER_FILE not in {entry.name for entry in manifest.files}:
        return None
    try:
        return vocabulary_size(folder / TOKENIZER_FILE)
    except ValueError as error:
        raise ShardDamaged(f"{folder / TOKENIZER_FILE}: not a tokenizer ({error}). {_REMEDY}") from error


def _named(sample: str) -> str:
    return f"sample {sample}: " if sample else ""


def rows_by_file(rows: list[IndexRow]) -> dict[str, list[IndexRow]]:
    """Return the rows with frames, by their payload file."""
    found: dict[str, list[IndexRow]] = {}
    for row in rows:
        if row.frames:
            found.setdefault(row.file, []).append(row)
    return found


@dataclass(frozen=True)
class Damage:
    """Damage in a shard folder: the file, the sample ("" if the whole file is damaged), and what is wrong."""

    file: str
    sample: str
    what: str


def find_damage(folder: Path | str, look: Look = lambda frame, manifest: "") -> list[Damage]:
    """Read every byte of a shard folder, and return all damage; [] for an undamaged folder.

    `look` returns what is wrong with the bytes of a frame, "" if nothing is.
    Raise UserError if the manifest cannot be read.
    """
    folder = Path(folder)
    manifest, found = read_manifest(folder), list[Damage]()
    for entry in manifest.files:
        if problem := _file_problem(folder, entry, content=True):
            found.append(Damage(entry.name, "", problem))
    whole = {entry.name for entry in manifest.files} - {damage.file for damage in found}
    if INDEX_FILE not in whole and found:
        return found
    try:
        index = _checked_index(folder, manifest)
        vocabulary = _vocabulary(folder, manifest) if TOKENIZER_FILE in whole else None
    except ShardDamaged as error:
        return [*found, Damage(TOKENIZER_FILE, "", str(error).split(": ", 1)[1])]
    except (OSError, ValueError) as error:
        return [*found, Damage(INDEX_FILE, "", f"cannot be read ({error})")]
    if faults := list(find_faults(index, manifest, vocabulary)):
        return found + [Damage(INDEX_FILE, *fault) for fault in faults]
    for name, rows in rows_by_file(index.rows).items():
        found += [Damage(name, *fault) for fault in _payload_damage(folder / name, rows, manifest, look)]
    return found


def _payload_damage(path: Path, rows: list[IndexRow], manifest: Manifest, look: Look) -> Iterator[Fault]:
    try:
        payload = Payload(path, read_layout(path, rows, manifest), manifest)
    except (OSError, ValueError) as error:
        yield "", f"cannot be read ({error})"
        return
    with payload:
        for row in rows:
            try:
                yield from _sample_damage(payload, row, lambda frame: look(frame, manifest))
            except (OSError, ValueError) as error:
                yield row.sample_id, f"cannot be read ({error})"


def _sample_damage(payload: Payload, row: IndexRow, look: Callable[[bytes], str]) -> Iterator[Fault]:
    digest = PayloadHash()
    for start in range(0, row.frames, payload.row_group_frames):
        table = payload.read([row.first_row_group + start // payload.row_group_frames], payload.columns)
        for data in table.column("frame").to_pylist():
            digest.add(data)
            if problem := look(data):
                yield row.sample_id, problem
                return
        if problem := different(table, row, start):
            yield row.sample_id, problem
            return
    if digest.hexdigest() != row.payload_xxh3:
        yield row.sample_id, "its frames differ from the frames that were written"

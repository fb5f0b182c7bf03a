"""Write payload files and index files. Their bytes depend only on the samples."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from ma2mba.files import atomic_path, fsync, temporary_name
from ma2mba.shards.format import (
    FRAMES_PER_ROW_GROUP,
    PAYLOAD_FOLDER,
    IndexRow,
    payload_schema,
    rows_to_table,
)


@dataclass(frozen=True)
class PayloadFrame:
    """A frame, sampled at `t` seconds of the video: the picture shown since `pts` seconds, as JPEG or feature bytes."""

    t: float
    pts: float
    data: bytes


def payload_name(shard: int) -> str:
    """Return the path of the payload file of shard number `shard`, relative to the shard folder."""
    return f"{PAYLOAD_FOLDER}/part-{shard:05d}.parquet"


class PayloadHash:
    """The XXH3-128 of a sample's frames. The length of each frame (8 bytes, little endian) precedes its bytes."""

    def __init__(self) -> None:
        self._digest = xxhash.xxh3_128()

    def add(self, data: bytes) -> None:
        self._digest.update(len(data).to_bytes(8, "little"))
        self._digest.update(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def payload_hash(frames: Iterable[bytes]) -> str:
    """Return the PayloadHash of all frames of a sample."""
    digest = PayloadHash()
    for data in frames:
        digest.add(data)
    return digest.hexdigest()


class PayloadWriter:
    """Writes the payload file of shard number `shard`. Use as a context manager.

    The file appears only if the block succeeds and has added at least one frame. `kind` is "jpeg" or "features";
    `frame_bytes` is the size of every frame of kind "features".
    """

    def __init__(self, folder: Path, shard: int, kind: str = "jpeg", frame_bytes: int | None = None):
        self.name = payload_name(shard)
        self._path = folder / self.name
        self._temporary = temporary_name(self._path)
        self._row_group_frames, self._schema = FRAMES_PER_ROW_GROUP[kind], payload_schema(frame_bytes)
        self._writer: pq.ParquetWriter | None = None
        self._row_groups = self._frames = 0

    def __enter__(self) -> "PayloadWriter":
        return self

    def add(self, sample_id: str, frames: Sequence[PayloadFrame], beat: Callable[[], None] = lambda: None) -> int:
        """Append frames of a sample in row groups of their own. Return the number of the first row group.

        Calls `beat` after each row group. Several calls may append to one sample if all calls except the last bring
        full row groups.
        """
        first = self._row_groups
        for start in range(0, len(frames), self._row_group_frames):
            some = frames[start : start + self._row_group_frames]
            columns = [[sample_id] * len(some), [f.t for f in some], [f.pts for f in some], [f.data for f in some]]
            arrays = [pa.array(values, field.type) for values, field in zip(columns, self._schema, strict=True)]
            self._open().write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=len(some))
            self._row_groups += 1
            beat()
        self._frames += len(frames)
        return first

    def _open(self) -> pq.ParquetWriter:
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.unlink(missing_ok=True)  # it may be a symbolic link
            # statistics would store the smallest and largest frame of every row group again, outside the checksums
            options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
            self._writer = pq.ParquetWriter(self._temporary, self._schema, write_page_checksum=True, **options)
        return self._writer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        try:
            self._writer.close()
            if kind is None:
                fsync(self._temporary)
                self._verify()
                os.replace(self._temporary, self._path)
                fsync(self._path.parent)
        finally:
            self._temporary.unlink(missing_ok=True)

    def _verify(self) -> None:
        """Raise OSError unless the written file has all row groups and frames."""
        with pq.ParquetFile(self._temporary) as file:
            if (file.metadata.num_row_groups, file.metadata.num_rows) != (self._row_groups, self._frames):
                raise OSError(f"{self._temporary}: holds {file.metadata.num_rows} of the {self._frames} frames written")


def write_index(path: Path, rows: list[IndexRow]) -> None:
    """Write index rows as Parquet, atomically."""
    with atomic_path(path) as temporary:
        pq.write_table(rows_to_table(rows), temporary, compression="zstd", write_page_checksum=True)

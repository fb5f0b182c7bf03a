"""Read payload files. Their footer and pages are compared with the index and the format before frames take memory."""

from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ma2mba.shards.format import FRAMES_PER_ROW_GROUP, PAYLOAD_SCHEMA, IndexRow, payload_schema
from ma2mba.shards.manifest import Manifest
from ma2mba.shards.structure import UNCOMPRESSED, Chunk, ParquetPages, as_malformed, open_parquet
from ma2mba.shards.thrift import Malformed

PIXEL_BYTES, JPEG_BYTES = 6, 1 << 16
"""Bytes of the largest JPEG: for each pixel, and for its headers."""
ID_BYTES, PAGE_BYTES = 1 << 16, 1 << 8
"""Bytes of the longest sample id, and of the largest page header without statistics."""


class Layout(NamedTuple):
    """Where the row groups of a payload file are, after its footer was compared with the index and the format.

    `chunks`: int64 (row groups, columns, 2), the first byte and the bytes of each column. `rows`: of each row group.
    `checked`: 1 for each row group whose pages were compared with the footer.
    """

    chunks: np.ndarray
    rows: np.ndarray
    checked: bytearray


def read_layout(path: Path, samples: list[IndexRow], manifest: Manifest) -> Layout:
    """Read the footer of a payload file that holds the frames of `samples`.

    Raise ValueError if it is not a payload file that holds these samples, OSError if it cannot be read.
    """
    full = FRAMES_PER_ROW_GROUP[manifest.kind]
    end = max(row.first_row_group - (-row.frames // full) for row in samples)
    with ParquetPages(path) as pages:
        groups = pages.read_footer(end, len(PAYLOAD_SCHEMA))
    frame = manifest.features.frame_bytes if manifest.features else PIXEL_BYTES * manifest.image_size**2 + JPEG_BYTES
    for number, (rows, chunks) in enumerate(groups):
        for name, most, chunk in zip(PAYLOAD_SCHEMA.names, (ID_BYTES, 8, 8, frame), chunks, strict=True):
            if chunk.codec != UNCOMPRESSED or chunk.values != rows or chunk.packed != chunk.unpacked:
                raise Malformed(f"column {name} of row group {number} is compressed, or has other rows than its group")
            if chunk.dictionary > 0:
                raise Malformed(f"column {name} of row group {number} has a dictionary, which a payload never has")
            if chunk.unpacked > rows * (most + PAGE_BYTES):
                raise Malformed(f"column {name} of row group {number} is too large for its {rows} rows")
    sizes = np.array([group.rows for group in groups], np.int64)
    _check_row_groups(sizes, samples, full)
    places = [[(chunk.data, chunk.packed) for chunk in group.chunks] for group in groups]
    return Layout(np.array(places, np.int64), sizes, bytearray(len(groups)))


def _check_row_groups(sizes: np.ndarray, samples: list[IndexRow], full: int) -> None:
    """Raise Malformed unless each sample has its frames in full row groups, and the rest in its last one."""
    for row in samples:
        count = -(-row.frames // full)
        found = sizes[row.first_row_group : row.first_row_group + count]
        rest = row.frames - (count - 1) * full
        if len(found) != count or (found[:-1] != full).any() or found[-1] != rest:
            raise Malformed(f"the row groups of sample {row.sample_id} do not hold its {row.frames} frames")


class Payload:
    """An open payload file. Use as a context manager, or call `close`.

    Raise ValueError if it has other columns than the manifest says, OSError if it cannot be read.
    """

    def __init__(self, path: Path, layout: Layout, manifest: Manifest):
        self.row_group_frames, self._layout = FRAMES_PER_ROW_GROUP[manifest.kind], layout
        schema = payload_schema(manifest.features.frame_bytes if manifest.features else None)
        self.columns = schema.names
        self._pages = ParquetPages(path)
        try:
            self._file = open_parquet(path, schema)
        except BaseException:
            self._pages.close()
            raise

    def __enter__(self) -> "Payload":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._pages.close()

    def read(self, row_groups: list[int], columns: list[str]) -> pa.Table:
        """Read some columns of some row groups. Raise ValueError or OSError if their pages are damaged."""
        for number in row_groups:
            if not self._layout.checked[number]:
                rows = int(self._layout.rows[number])
                for name, (start, size) in zip(self.columns, self._layout.chunks[number].tolist(), strict=True):
                    self._pages.check_chunk(Chunk(UNCOMPRESSED, rows, size, size, start, -1), name)
                self._layout.checked[number] = 1
        with as_malformed():
            return self._file.read_row_groups(row_groups, columns=columns)


def different(table: pa.Table, row: IndexRow, start: int) -> str:
    """Return why frames read from a payload are not the frames of `row` from number `start` on; "" if they are."""
    times = row.timestamps[start : start + table.num_rows]
    names = table.column("sample_id").to_pylist()
    if not np.array_equal(table.column("t").to_numpy(), times) or set(names) != {row.sample_id}:
        return "its frames differ from the index"
    return ""

"""Read Parquet files from other projects row by row."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ma2mba.errors import UserError
from ma2mba.memory import at_most

ROW_GROUP_BYTES = 1 << 30
"""Bytes of the largest row group, decompressed. Such a group is in memory as a whole."""
SPARE = 200 << 20
"""Bytes that reading may need beyond the size that a file declares."""


EXPANSION = 1000
"""How many times larger than the file, beyond SPARE, its texts may be: a repeated text takes little space in a file."""


@contextmanager
def decompressing(memory: int) -> Iterator[None]:
    """Let PyArrow take `memory` bytes in the block, for what it reads from a file. Beyond, it raises MemoryError.

    PyArrow's own pool would not notice a limit: it reserves memory in advance.
    """
    pool = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        with at_most(memory):
            yield
    finally:
        pa.set_memory_pool(pool)


def memory_for(path: Path, columns: Sequence[str]) -> int:
    """Return the bytes that reading `columns` (() means all) of a Parquet file may need, by the sizes it declares.

    Raise UserError if the file is not Parquet, lacks a column, or has a row group that is too large.
    """
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file, columns)
            return _memory_for(path, file, columns)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _incomplete(path, error) from error


def read_records(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield `columns` of each row as Python values, in order. Holds one batch of rows in memory at a time.

    Raise UserError if the file is not Parquet, is damaged, lacks a column, needs more memory than it declares, or
    repeats long texts.
    """
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file, columns)
            memory = _memory_for(path, file, columns)
            batches = file.iter_batches(batch_size=1024, columns=list(columns), use_threads=False)
            left = SPARE + EXPANSION * path.stat().st_size
            while True:
                with decompressing(memory):
                    rows = batch.to_pylist() if (batch := next(batches, None)) else []
                if batch is None:
                    return
                left -= sum(len(value) for row in rows for value in row.values() if isinstance(value, str))
                if left < 0:
                    raise UserError(f"{path}: its texts are {EXPANSION} times larger than the file. Shorten them")
                yield from rows
    except MemoryError as error:
        raise UserError(f"{path}: needs more memory than it declares. Download or copy it again") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _incomplete(path, error) from error


def _check_columns(path: Path, file: pq.ParquetFile, columns: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in file.schema_arrow.names]:
        there = ", ".join(file.schema_arrow.names)
        raise UserError(f"{path}: no column {', '.join(missing)}. It has the columns {there}")


def _memory_for(path: Path, file: pq.ParquetFile, columns: Sequence[str]) -> int:
    """Return the bytes that reading a row group may need. Raise UserError if one is larger than ROW_GROUP_BYTES."""
    wanted, largest = set(columns), 0
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        parts = [group.column(i) for i in range(group.num_columns)]
        size = sum(part.total_uncompressed_size for part in parts if not wanted or _column(part) in wanted)
        if size > ROW_GROUP_BYTES:
            raise UserError(
                f"{path}: its row group {number} takes {size:,} bytes of memory, more than {ROW_GROUP_BYTES:,}. "
                "Write the file again with fewer rows in a row group"
            )
        largest = max(largest, size)
    return SPARE + 4 * largest


def _column(part: pq.ColumnChunkMetaData) -> str:
    return part.path_in_schema.split(".")[0]


def _incomplete(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a complete Parquet file ({' '.join(str(error).split())}). Download or copy it again")

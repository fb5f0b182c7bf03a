"""Read Parquet files from other projects row by row."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ma2mba.errors import UserError
from ma2mba.files import open_regular
from ma2mba.memory import at_most
from ma2mba.shards.thrift import Field, Fields, Malformed, parse

ROW_GROUP_BYTES = 1 << 30
"""Bytes of the largest row group, decompressed. Such a group is in memory as a whole."""
SPARE = 200 << 20
"""Bytes that reading may need beyond the size that a file declares."""


LISTED = 1 << 20
"""Elements of a list of a footer: columns of the schema, texts that describe the file."""
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
    names = [file.schema.column(i).path.split(".")[0] for i in range(len(file.schema))]
    for number, sizes in enumerate(_sizes(path, file.metadata.num_row_groups, len(names))):
        size = sum(size for name, size in zip(names, sizes, strict=True) if not wanted or name in wanted)
        if size > ROW_GROUP_BYTES:
            raise UserError(
                f"{path}: its row group {number} takes {size:,} bytes of memory, more than {ROW_GROUP_BYTES:,}. "
                "Write the file again with fewer rows in a row group"
            )
        largest = max(largest, size)
    return SPARE + 4 * largest


def _sizes(path: Path, row_groups: int, columns: int) -> list[list[int]]:
    """Return the decompressed size of each column of each row group, as the footer states it.

    PyArrow states these sizes too, but a wrong number elsewhere in the footer ends the process then: an exception of
    its C++ code that nothing catches. Raise Malformed if the footer is not as Parquet defines it.
    """
    with open_regular(path) as file:
        end = file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(0, end - length))
        content = file.read(min(length, end))
    lists = Field(LISTED, {})
    column: Fields = {3: Field(fields={6: Field(), **dict.fromkeys((2, 3, 8, 13), lists)})}
    row_group: Fields = {1: Field(columns, column), 4: lists}
    try:
        footer, _ = parse(content, {2: lists, 4: Field(row_groups, row_group), 5: lists, 7: lists})
        groups = [[part[3][6] for part in group[1]] for group in footer[4]]
    except (IndexError, KeyError, TypeError) as error:
        raise Malformed("its footer cannot be read") from error
    if any(len(group) != columns or min(group, default=0) < 0 for group in groups):
        raise Malformed(f"its row groups do not have {columns} columns each")
    return groups


def _incomplete(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a complete Parquet file ({' '.join(str(error).split())}). Download or copy it again")

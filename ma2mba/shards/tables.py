"""Read Parquet files from other projects row by row."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ma2mba.errors import UserError


def read_records(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield `columns` of each row as Python values, in order. Holds one batch of rows in memory at a time.

    Raise UserError if the file is not Parquet, is damaged or lacks a column.
    """
    try:
        with pq.ParquetFile(path) as file:
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                there = ", ".join(file.schema_arrow.names)
                raise UserError(f"{path}: no column {', '.join(missing)}. It has the columns {there}")
            for batch in file.iter_batches(batch_size=1024, columns=list(columns), use_threads=False):
                yield from batch.to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a complete Parquet file ({error}). Download or copy it again") from error

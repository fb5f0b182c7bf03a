"""Parquet files of others, read row by row."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ma2mba.errors import UserError


def read_records(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Each row's values of `columns` as Python values, in order, a batch of rows in memory at a time.

    Raises UserError for a file that is no Parquet, is damaged or lacks a column.
    """
    try:
        with pq.ParquetFile(path) as file:
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                there = ", ".join(file.schema_arrow.names)
                raise UserError(f"{path}: no column {', '.join(missing)}; its columns are {there}")
            for batch in file.iter_batches(batch_size=1024, columns=list(columns), use_threads=False):
                yield from batch.to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a whole Parquet file ({error}); copy it again from where it is whole") from error

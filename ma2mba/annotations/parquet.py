"""Parquet annotation files. A module of its own, because most formats need no PyArrow."""

from collections.abc import Callable
from pathlib import Path

from ma2mba.annotations.files import Records, without_nulls
from ma2mba.shards.tables import read_records


def parquet_rows(*columns: str) -> Callable[[Path], Records]:
    """Return a reader of Parquet files that have at least these columns.

    The reader yields ("row 1", {column: value}), ... without nulls, and raises UserError when a column is missing.
    """

    def read(path: Path) -> Records:
        for i, record in enumerate(read_records(path, columns), 1):
            yield f"row {i}", without_nulls(record)

    return read

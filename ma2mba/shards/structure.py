"""Check the structure of a Parquet file of a shard folder before its data takes memory: footer, schema, pages.

pyarrow trusts sizes and counts that a file states. A file of a few bytes may state billions of values.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ma2mba.shards.thrift import MOST, Field, Fields, Malformed, parse

MAGIC = b"PAR1"
FOOTER_BASE, FOOTER_PER_COLUMN = 1 << 18, 1 << 9
"""Most bytes of a footer: a base for the schema, and bytes for each column of each row group without statistics."""
FOOTER_STATISTICS = 1 << 15
"""Bytes of the statistics that the footer may hold for each column of each row group of an index."""
HEADER, LARGEST_HEADER = 1 << 8, 1 << 16
"""Bytes in which a page header usually fits, and must fit."""
PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY = 0, 2, 3, 8
UNCOMPRESSED, SNAPPY, ZSTD = 0, 1, 6
DATA_PAGE, DICTIONARY_PAGE = 0, 2
PAGE: Fields = {1: Field(), 2: Field(), 3: Field()} | {n: Field(fields={1: Field(), 2: Field()}) for n in (5, 7)}
STATED = (4, 5, 6, 7, 9, 11)
"""The fields of a page header, and of the column metadata in a footer (the numbers of a Chunk), as Parquet defines."""


class Chunk(NamedTuple):
    """What the footer states about a column of a row group: values, bytes, and places in the file."""

    codec: int
    values: int
    unpacked: int
    packed: int
    data: int
    dictionary: int


class RowGroup(NamedTuple):
    rows: int
    chunks: list[Chunk]


@contextmanager
def as_malformed() -> Iterator[None]:
    """Turn the errors of pyarrow about a file into Malformed, in one line."""
    try:
        yield
    except (pa.ArrowException, OSError, IndexError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Malformed(" ".join(str(error).split())[:500]) from error


class ParquetPages:
    """An open Parquet file, whose footer and pages are checked without pyarrow. Use as a context manager.

    `statistics`: the footer and the pages may have statistics and dictionaries. Raise OSError if the file cannot be
    read, Malformed if it is not a regular file.
    """

    def __init__(self, path: Path, statistics: bool = False):
        self.statistics = statistics
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise Malformed("is not a regular file")

    def __enter__(self) -> "ParquetPages":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def read_footer(self, row_groups: int, columns: int) -> list[RowGroup]:
        """Return the row groups. Raise Malformed if there are more, or other than `columns` columns in one."""
        end = os.pread(self._descriptor, 8, max(0, self.size - 8))
        if self.size < 12 or end[4:] != MAGIC:
            raise Malformed("is not a complete Parquet file")
        length = int.from_bytes(end[:4], "little")
        each = FOOTER_PER_COLUMN + (FOOTER_STATISTICS if self.statistics else 0)
        if length > min(self.size - 12, FOOTER_BASE + row_groups * columns * each):
            raise Malformed(f"has a footer of {length:,} bytes, too large for its {row_groups:,} row groups")
        content = os.pread(self._descriptor, length, self.size - 8 - length)
        chunk: Fields = {1: Field(), 3: Field(fields={number: Field() for number in STATED})}
        row_group: Fields = {1: Field(columns, chunk), 3: Field()}
        try:
            footer, _ = parse(content, {2: Field(4 * columns, {}), 4: Field(2 * row_groups + MOST, row_group)})
        except IndexError:
            raise Malformed("has a footer that ends too early") from None
        groups = _structures(footer, 4)
        if len(groups) > row_groups:
            raise Malformed(f"has {len(groups):,} row groups; at most {row_groups:,} belong here")
        return [_row_group(fields, columns) for fields in groups]

    def check_chunk(self, chunk: Chunk, name: str) -> None:
        """Raise Malformed unless the pages of a column chunk hold what its footer states, in our encodings.

        The memory for reading the chunk is then known from the footer. `name`: the column, for the message.
        """
        if chunk.values == 0:
            return  # nothing is read; the offset of the first data page is 0
        start = chunk.dictionary if 0 < chunk.dictionary < chunk.data else chunk.data
        at, end, values, unpacked = start, start + chunk.packed, 0, 0
        if start < len(MAGIC) or end > self.size - 12:
            raise Malformed(f"column {name} lies outside the file")
        while at < end:
            page, size = self._page_header(at, end)
            packed, full = _number(page, 3), _number(page, 2)
            count, encoding = _content(page)
            in_dictionary = _number(page, 1) == DICTIONARY_PAGE
            allowed = (PLAIN, PLAIN_DICTIONARY) if in_dictionary else (PLAIN, RLE, RLE_DICTIONARY, PLAIN_DICTIONARY)
            if (in_dictionary or encoding in (RLE_DICTIONARY, PLAIN_DICTIONARY)) and not self.statistics:
                raise Malformed(f"column {name} has a dictionary, which a payload never has")
            if min(packed, full, count) < 0 or encoding not in allowed or (in_dictionary and count > full):
                raise Malformed(f"column {name} has a page that this format does not have")
            if chunk.codec == UNCOMPRESSED and packed != full:
                raise Malformed(f"column {name} has a page of two sizes")
            values += 0 if in_dictionary else count
            unpacked += size + full
            at += size + packed
        if at != end or values != chunk.values or unpacked != chunk.unpacked:
            raise Malformed(f"column {name} has pages that differ from the footer")

    def _page_header(self, at: int, end: int) -> tuple[dict[int, Any], int]:
        for length in (HEADER, LARGEST_HEADER):
            try:
                return parse(os.pread(self._descriptor, min(length, end - at), at), PAGE)
            except IndexError:
                continue
        raise Malformed("has a page header that is cut off or too large")


def _row_group(fields: dict[int, Any], columns: int) -> RowGroup:
    chunks = []
    for column in _structures(fields, 1):
        stated = column.get(3)
        numbers = [_number(stated, number) for number in STATED] if isinstance(stated, dict) else []
        if 1 in column or len(numbers) != len(STATED) or min(numbers[:5]) < 0:
            raise Malformed("has a column whose footer is incomplete, or that is in another file")
        if numbers[0] not in (UNCOMPRESSED, SNAPPY, ZSTD):
            raise Malformed("has a column with a compression that this format does not have")
        chunks.append(Chunk(*numbers))
    rows = _number(fields, 3)
    if rows < 0 or len(chunks) != columns:
        raise Malformed(f"has a row group of {len(chunks)} columns and {rows} rows; it should have {columns} columns")
    return RowGroup(rows, chunks)


def _structures(fields: dict[int, Any], number: int) -> list[dict[int, Any]]:
    found = fields.get(number)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise Malformed("has a footer without row groups")
    return found


def _content(page: dict[int, Any]) -> tuple[int, int]:
    """Return the number of values of a page and their encoding, (-1, -1) for an unknown kind of page."""
    header = page.get({DATA_PAGE: 5, DICTIONARY_PAGE: 7}.get(_number(page, 1), 0))
    return (_number(header, 1), _number(header, 2)) if isinstance(header, dict) else (-1, -1)


def _number(fields: dict[int, Any], at: int) -> int:
    value = fields.get(at)
    return value if isinstance(value, int) and abs(value) < 1 << 62 else -1


def open_parquet(path: Path, schema: pa.Schema, strings: list[str] | None = None) -> pq.ParquetFile:
    """Open a file whose footer was checked, to read columns of this `schema`. Raise Malformed for other columns.

    `strings`: columns to read as dictionaries, so that a repeated string takes memory once.
    """
    with as_malformed():
        file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=strings is None)
        try:
            if not file.schema_arrow.equals(schema):
                found = ", ".join(file.schema_arrow.names)[:300]
                raise Malformed(f"columns are {found}; expected {', '.join(schema.names)}, each of its type")
            metadata = file.metadata
            if strings is None:
                return file
        except BaseException:
            file.close()
            raise
        file.close()
        return pq.ParquetFile(path, metadata=metadata, read_dictionary=strings, page_checksum_verification=True)

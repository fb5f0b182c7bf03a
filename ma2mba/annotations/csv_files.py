"""Annotation files of CSV, read row by row. A stray quote costs the row that it stands in, not the rows after it."""

import csv
import io
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ma2mba.annotations.fields import RecordError
from ma2mba.annotations.files import Records, require_content
from ma2mba.annotations.json_values import most_bytes, too_long
from ma2mba.errors import UserError
from ma2mba.files import open_regular

FIELDS = 100_000
"""Most commas of a row."""
_SHOWN = 20
"""Most columns that a message lists."""


def csv_rows(*columns: str) -> Callable[[Path], Records]:
    """Return a reader of CSV files that have at least these columns.

    The reader yields ("line 2", {column: text}), ... and raises UserError when a column is missing.
    """

    def read(path: Path) -> Records:
        with open_regular(path) as file:
            require_content(path, file)
            rows = _rows(file)
            _, header = next(rows, ("", []))
            if isinstance(header, RecordError):
                raise UserError(f"{path}: the first line names no columns: {header}. Correct the first line.")
            there = ", ".join(header[:_SHOWN]) + (f" and {len(header) - _SHOWN} more" if len(header) > _SHOWN else "")
            if missing := [name for name in columns if name not in header]:
                raise UserError(f"{path}: no column {', '.join(missing)}. The file's columns are {there}.")
            if twice := [name for name in columns if header.count(name) > 1]:
                raise UserError(f"{path}: the column {twice[0]} is there twice. Remove or rename one.")
            for where, row in rows:
                yield where, row if isinstance(row, RecordError) else _by_column(header, row)

    return read


def _by_column(header: list[str], row: list[str]) -> dict[str, str] | RecordError:
    if len(row) != len(header):
        return RecordError(f"has {len(row)} fields, not {len(header)}")
    if any("\udc80" <= letter <= "\udcff" for text in row for letter in text):
        return RecordError("is not UTF-8")
    return dict(zip(header, row, strict=True))


def _rows(file: BinaryIO) -> Iterator[tuple[str, list[str] | RecordError]]:
    """Yield (place, row or why its first line is no row), ... Blank lines are skipped. The first row sets the width."""
    lines, width = _Lines(file), 0
    while lines.more():
        where = f"line {lines.number}"
        row = _row(lines, width)
        width = width or (len(row) if isinstance(row, list) else 0)
        if row:
            yield where, row


def _row(lines: "_Lines", width: int) -> list[str] | RecordError:
    """Return the next row. If it is not a row of `width` fields, it is its first line alone: the next row follows."""
    lines.begin()
    try:
        row = next(csv.reader(lines, strict=True))
    except (csv.Error, _BadLine) as error:
        reason = str(error) if isinstance(error, _BadLine) else f"not CSV ({error})"
    else:
        reason = _swallowed(row, lines.taken[1:], width) if len(lines.taken) > 1 and width else ""
        if not reason:
            return row
    lines.give_back()
    return RecordError(reason)


def _swallowed(row: list[str], later: list[str], width: int) -> str:
    """Return why a row of several lines is no row, "" if it is one.

    A stray quote opens a field that ends at the quote of a later row. The rows in this field have as many fields as
    the file has columns, and whole numbers in the same columns.
    """
    if len(row) != width:
        return f"has {len(row)} fields, not {width}, or a stray quote"
    numbers = [i for i, field in enumerate(row) if field.isdigit()]
    for line in later if numbers else ():
        if line.count(",") < width - 1:
            continue
        try:
            fields = next(csv.reader([line], strict=True))
        except csv.Error:
            continue
        if len(fields) == width and all(fields[i].isdigit() for i in numbers):
            return "has a stray quote: rows follow it in its text"
    return ""


class _BadLine(Exception):
    """A line cannot belong to a row. The message says why."""


class _Lines:
    """The lines of a file for csv.reader, which takes one row's lines after `begin`. `number` is the next line's."""

    def __init__(self, file: BinaryIO):
        self._text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        self._waiting = deque[str | None]()  # None is a line that is too long
        self._most = most_bytes()
        self.number = 1
        self.begin()

    def begin(self) -> None:
        """Start a row. `taken` will be its lines."""
        self.taken: list[str] = []
        self._size = self._commas = 0

    def give_back(self) -> None:
        """Give all lines of the row back but the first."""
        self._waiting.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken[1:])

    def more(self) -> bool:
        """Return False at the end of the file."""
        if not self._waiting:
            self._read()
        return bool(self._waiting)

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if not self.more():
            raise StopIteration
        if self.taken and self._waiting[0] is None:
            raise _BadLine("has a quote without an end")
        line = self._waiting.popleft()
        self.number += 1
        if line is None:
            raise _BadLine(str(too_long()))
        self.taken.append(line)
        self._size, self._commas = self._size + len(line), self._commas + line.count(",")
        if self._size > self._most:
            raise _BadLine(str(too_long()))
        if self._commas > FIELDS:
            raise _BadLine(f"has more than {FIELDS:,} commas")
        return line

    def _read(self) -> None:
        line = self._text.readline(self._most + 1)
        if len(line) <= self._most:
            self._waiting.extend([line] if line else [])
            return
        while line and not line.endswith(("\n", "\r")):
            line = self._text.readline(1 << 20)
        self._waiting.append(None)

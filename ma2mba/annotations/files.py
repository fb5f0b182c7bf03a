"""Annotation files (JSON, JSON lines, CSV), read record by record.

A null in a record counts as a missing field, because in a table every row has every field.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ma2mba.annotations.fields import RecordError
from ma2mba.errors import UserError
from ma2mba.files import reading

Records = Iterator[tuple[str, Any]]
"""(place in the file, JSON value or CSV row as a dictionary). The value is a RecordError if it cannot be read."""


class Table(Protocol):
    """A file of a data set that knows its own format, where a `Path` needs the parser of an annotation format."""

    def records(self, columns: Sequence[str] = ()) -> Records:
        """Yield (place in the file, record), ... If the file has columns, the records have only `columns`.

        Raise UserError if the file cannot be read or lacks one of `columns`.
        """


Files = list[tuple[str, Path | Table]]
"""Annotation files: (name for messages, path or table)."""
_BLANK = re.compile(r"[ \t\r\n]*")


def without_nulls(value: Any) -> Any:
    """Return a JSON value in which no dictionary, at any depth, has a key with the value None."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def json_records(path: Path) -> Records:
    """Yield the records of a file that holds a JSON list, JSON lines or a single JSON object.

    Raise UserError if the file holds anything else.
    """
    with reading(path), open(path, "rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
        file.seek(0)
        line = file.readline() if start.startswith(b"{") else b""
    if not line:
        yield from json_list(path)
    elif _is_json(line):
        yield from json_lines(path)
    else:
        yield "line 1", {key: value for _, key, value in json_object(path)}


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def json_list(path: Path) -> Records:
    """Yield ("line 7, record 1", value), ... of a file that holds one JSON list. Raise UserError otherwise."""
    for i, (line, _, value) in enumerate(_members(path, "[]", "list of records"), 1):
        yield f"line {line}, record {i}", value


def json_object(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield ("line 7, abc", "abc", value), ... of a file that holds one JSON object. Raise UserError otherwise."""
    for line, key, value in _members(path, "{}", "object"):
        yield f"line {line}, {key}", key, value


def _members(path: Path, brackets: str, kind: str) -> Iterator[tuple[int, str, Any]]:
    """Yield (line, key or "", value) of each member. Only one member is parsed at a time, to save memory."""
    try:
        with reading(path):
            text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}). The file must hold one JSON {kind}.") from error
    decoder, keyed = json.JSONDecoder(), brackets == "{}"
    line, counted = 1, 0

    def expect(sign: str, at: int) -> int:
        if text[at : at + 1] not in tuple(sign):
            place = f"line {text.count(chr(10), 0, at) + 1}"
            raise UserError(f"{path}: {place}: expected {' or '.join(sign)}. The file must hold one JSON {kind}.")
        return _BLANK.match(text, at + 1).end()  # type: ignore[union-attr]

    def value_at(at: int) -> tuple[Any, int]:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not JSON ({error}). The file must hold one JSON {kind}.") from error
        return value, _BLANK.match(text, end).end()  # type: ignore[union-attr]

    at = expect(brackets[0], _BLANK.match(text).end())  # type: ignore[union-attr]
    more = text[at : at + 1] != brackets[1]
    while more:
        line, counted = line + text.count("\n", counted, at), at
        key = ""
        if keyed:
            key, at = value_at(at)
            at = expect(":", at)
        value, at = value_at(at)
        yield line, key, without_nulls(value)
        more = text[at : at + 1] == ","
        at = expect("," + brackets[1], at) if more else at
    if (end := expect(brackets[1], at)) != len(text):
        raise UserError(f"{path}: text follows the JSON {kind}: {text[end : end + 20]!r}. Remove this text.")


def json_lines(path: Path) -> Records:
    """Yield ("line 1", value), ... of a file with one JSON value per line. Blank lines are skipped."""
    with reading(path), open(path, "rb") as file:
        for i, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield f"line {i}", without_nulls(json.loads(line))
            except (ValueError, RecursionError) as error:
                yield f"line {i}", RecordError(f"not JSON ({error})")


def csv_rows(*columns: str) -> Callable[[Path], Records]:
    """Return a reader of CSV files that have at least these columns.

    The reader yields ("line 2", {column: text}), ... and raises UserError when a column is missing.
    """

    def read(path: Path) -> Records:
        with reading(path), open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file, strict=True)
            try:
                header = next(rows, [])
            except csv.Error as error:
                raise UserError(f"{path}: the first line is not CSV ({error}). It must name the columns.") from error
            if missing := [name for name in columns if name not in header]:
                raise UserError(f"{path}: no column {', '.join(missing)}. The file's columns are {', '.join(header)}.")
            while True:
                where = f"line {rows.line_num + 1}"
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield where, RecordError(f"not CSV ({error})")
                    continue
                yield where, _by_column(header, row)

    return read


def _by_column(header: list[str], row: list[str]) -> dict[str, str] | RecordError:
    if len(row) != len(header):
        return RecordError(f"has {len(row)} fields, not {len(header)}")
    if any("\udc80" <= letter <= "\udcff" for text in row for letter in text):
        return RecordError("is not UTF-8")
    return dict(zip(header, row, strict=True))

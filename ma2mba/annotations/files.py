"""Annotation files of JSON and JSON lines, read record by record, and what all annotation files have in common.

A null in a record counts as a missing field, because in a table every row has every field. A file is never in memory
as a whole: one record may have MA2MBA_LIMIT_TEXT_MB megabytes.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ma2mba.annotations.fields import RecordError
from ma2mba.annotations.json_values import (
    JsonValues,
    has_too_many_values,
    most_bytes,
    too_long,
    too_many_values,
)
from ma2mba.annotations.json_window import Window
from ma2mba.errors import UserError
from ma2mba.files import open_regular

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


def without_nulls(value: Any) -> Any:
    """Return a JSON value in which no dictionary, at any depth, has a key with the value None."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield (number, line), ...; None instead of a line that exceeds the limit, which is never in memory."""
    most, number = most_bytes(), 0
    while line := file.readline(most + 1):
        number += 1
        if len(line) <= most:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(1 << 20)
        yield number, None


def json_records(path: Path) -> Records:
    """Yield the records of a file that holds a JSON list, JSON lines or a single JSON object.

    Raise UserError if the file holds anything else.
    """
    with open_regular(path) as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
        file.seek(0)
        line = next(lines(file), (0, None))[1] if start.startswith(b"{") else None
    if not start.startswith(b"{"):
        yield from json_list(path)
    elif line and _is_json(line):
        yield from json_lines(path)
    else:
        yield "line 1", _single_object(path)


def _is_json(line: bytes) -> bool:
    try:
        JsonValues().parse(line.decode("utf-8-sig"))
    except ValueError:
        return False
    return True


def _single_object(path: Path) -> Any:
    """Return the object that is the whole file: one record, with the limits of one."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most_bytes():
            return too_long()
        content = file.read()
    if has_too_many_values(content.decode(errors="replace")):
        return too_many_values()
    values = {}
    for _, key, value in json_object(path):
        if isinstance(value, RecordError):
            return value
        values[key] = value
    return {key: value for key, value in values.items() if value is not None}


def json_list(path: Path) -> Records:
    """Yield ("line 7, record 1", value), ... of a file that holds one JSON list. Raise UserError otherwise."""
    for i, (line, _, value) in enumerate(_members(path, "[]", "list of records"), 1):
        yield f"line {line}, record {i}", value


def json_object(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield ("line 7, abc", "abc", value), ... of a file that holds one JSON object. Raise UserError otherwise.

    The value of a key that was there before is a RecordError.
    """
    seen = set[str]()
    for line, key, value in _members(path, "{}", "object"):
        twice = RecordError(f"the key {key!r} is given twice") if key in seen else None
        seen.add(key)
        yield f"line {line}, {key}", key, twice or value


def _members(path: Path, brackets: str, kind: str) -> Iterator[tuple[int, str, Any]]:
    """Yield (line, key or "", value) of each member. Only one member is parsed at a time, to save memory."""
    with open_regular(path) as file:
        require_content(path, file)
        window = Window(path, file, f"The file must hold one JSON {kind}.")
        window.expect(brackets[0])
        more = not window.at_sign(brackets[1])
        while more:
            line, key = window.line, ""
            if brackets == "{}":
                key = window.key()
                window.expect(":")
            yield line, key, window.value()
            if more := window.at_sign(","):
                window.expect(",")
        window.expect(brackets[1], "," + brackets[1])
        if rest := window.rest():
            raise UserError(f"{path}: text follows the JSON {kind}: {rest[:20]!r}. Remove this text.")


def require_content(path: Path, file: BinaryIO) -> None:
    """Raise UserError for an empty file."""
    if not os.fstat(file.fileno()).st_size:
        raise UserError(f"{path}: is empty. Get the file again")


def json_lines(path: Path) -> Records:
    """Yield ("line 1", value), ... of a file with one JSON value per line. Blank lines are skipped."""
    values = JsonValues()
    with open_regular(path) as file:
        for i, line in lines(file):
            if line is None:
                yield f"line {i}", too_long()
            elif line.strip():
                try:
                    yield f"line {i}", values.parse(line.decode("utf-8-sig" if i == 1 else "utf-8"))
                except ValueError as error:
                    yield f"line {i}", RecordError(f"not JSON ({error})")

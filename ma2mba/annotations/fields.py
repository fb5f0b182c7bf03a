"""Required fields of a record, checked for their type."""

import re
from typing import Any, TypeVar

T = TypeVar("T")
MOST_SECONDS = 1e7
"""Seconds beyond which a time in a record is impossible: a video of four months."""


class RecordError(ValueError):
    """A record breaks its format. The message says how, without the record's place."""


def need(record: Any, key: str, kind: type[T]) -> T:
    """Return record[key], a `kind` that is not an empty text or list. Raise RecordError otherwise.

    An int has at most 64 bits. A float like 16.0 is an int: a table stores all numbers of a column as floats if one of
    them has a fraction.
    """
    if not isinstance(record, dict):
        raise RecordError(f"is a {type(record).__name__}, not an object")
    if key not in record:
        raise RecordError(f"has no {key}")
    value = _whole(record[key]) if kind is int else record[key]
    if kind is int and isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise RecordError(f"{key} is a number of {len(str(abs(value)))} digits")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RecordError(f"{key} is a {type(value).__name__}, not a {kind.__name__}")
    if kind in (str, list) and not value:
        raise RecordError(f"{key} is empty")
    return value


def need_text(record: Any, key: str) -> str:
    """Return record[key], a text, without the whitespace around it. Raise RecordError when nothing is left."""
    if not (text := need(record, key, str).strip()):
        raise RecordError(f"{key} is blank")
    return text


def need_number(record: Any, key: str, below: int) -> int:
    """Return record[key], an integer from 0 to below-1 or its digits (CSV holds text). Raise RecordError otherwise."""
    text = _need_digits(record, key)
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) >= below:
        raise RecordError(f"{key} is {text}, not a number from 0 to {below - 1}")
    return int(text)


def need_seconds(record: Any, key: str) -> float:
    """Return record[key], a number of seconds, or its digits. Raise RecordError otherwise."""
    value = record.get(key)
    try:
        seconds = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else -1.0
    except (ValueError, OverflowError):
        seconds = -1.0
    if not 0 < seconds < MOST_SECONDS:
        raise RecordError(f"{key} is {value!r:.100}, not a number of seconds above 0")
    return seconds


def need_id(record: Any) -> str:
    """Return record["id"] as text; some files hold numbers. Raise RecordError when it is missing or empty."""
    return _need_digits(record, "id")


def as_texts(row: Any) -> Any:
    """Return a row as a CSV file holds it: with integers as their digits. A table of a data set may hold numbers."""
    if not isinstance(row, dict):
        return row
    whole = {key: _whole(value) for key, value in row.items()}
    return {key: str(value) if isinstance(value, int) else value for key, value in whole.items()}


def _need_digits(record: Any, key: str) -> str:
    """Return record[key], a text that is not empty, or an integer as its digits. Raise RecordError otherwise."""
    value = _whole(record.get(key)) if isinstance(record, dict) else None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else need(record, key, str)


def _whole(value: Any) -> Any:
    """Return a float without a fraction as an int, and any other value unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value

"""Required fields of a record, checked for their type."""

import re
from typing import Any, TypeVar

T = TypeVar("T")


class RecordError(ValueError):
    """A record breaks its format. The message says how, without the record's place."""


def need(record: Any, key: str, kind: type[T]) -> T:
    """Return record[key], a `kind` that is not an empty text or list. Raise RecordError otherwise."""
    if not isinstance(record, dict):
        raise RecordError(f"is a {type(record).__name__}, not an object")
    if key not in record:
        raise RecordError(f"has no {key}")
    value = record[key]
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
    text = record[key] if isinstance(record, dict) and isinstance(record.get(key), int) else need(record, key, str)
    if isinstance(text, bool) or not re.fullmatch("[0-9]{1,18}", str(text)) or int(text) >= below:
        raise RecordError(f"{key} is {text}, not a number from 0 to {below - 1}")
    return int(text)


def need_id(record: Any) -> str:
    """Return record["id"] as text; some files hold numbers. Raise RecordError when it is missing or empty."""
    if isinstance(record, dict) and isinstance(record.get("id"), int):
        return str(record["id"])
    return need(record, "id", str)

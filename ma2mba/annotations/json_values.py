"""Parse the JSON value of one record: bounded in size and depth, each key once, and null as a missing key."""

import json
from collections import Counter
from typing import Any

from ma2mba.annotations.fields import RecordError
from ma2mba.limits import limits, raise_limit

DIGITS = 1000
"""Digits of the longest whole number that is read."""
_VALUES_PER_MB = 62_500
"""Values in each MB of the largest record: `[[],[],...` takes twenty times its own size once it is parsed."""


def most_bytes() -> int:
    """Return the bytes of the largest record."""
    return int(limits().text_mb * 1e6)


def too_long() -> RecordError:
    """Return the error of a record that exceeds the limit."""
    return RecordError(f"is longer than {limits().text_mb:g} MB. {raise_limit('text_mb')}")


def has_too_many_values(text: str) -> bool:
    """Return True if a JSON text holds more commas, colons and brackets than a record may have."""
    most = int(limits().text_mb * _VALUES_PER_MB)
    return len(text) > most and sum(map(text.count, ",:[{")) > most


def too_many_values() -> RecordError:
    """Return the error of a record that exceeds the limit of `has_too_many_values`."""
    return RecordError(f"has too many values. {raise_limit('text_mb')}")


class JsonValues:
    """Parses JSON texts, one at a time. A value is a RecordError if it is JSON, but cannot be a record."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_int=self._integer)
        self._problem = ""

    def parse(self, text: str) -> Any:
        """Return the value of a whole text. Raise ValueError if it is not JSON or nested too deeply."""
        if has_too_many_values(text):
            return too_many_values()
        self._problem = ""
        try:
            value = self._decoder.decode(text)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        return RecordError(self._problem) if self._problem else value

    def parse_at(self, text: str, at: int) -> tuple[Any, int]:
        """Return the value that starts at `at`, and the index after it. Raise JSONDecodeError or RecursionError."""
        self._problem = ""
        value, end = self._decoder.raw_decode(text, at)
        return (RecordError(self._problem) if self._problem else value), end

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            self._problem = f"the key {twice!r} is given twice"
        if None in values.values():
            return {key: value for key, value in values.items() if value is not None}
        return values

    def _integer(self, digits: str) -> int:
        if len(digits) > DIGITS:
            self._problem = f"has a number of {len(digits):,} digits"
            return 0
        return int(digits)

"""A window that moves over a large JSON file, so that only the current value is in memory."""

import io
import json
import re
from pathlib import Path
from typing import Any, BinaryIO

from ma2mba.annotations.json_values import JsonValues, has_too_many_values, most_bytes, too_long
from ma2mba.errors import UserError
from ma2mba.limits import raise_limit

_CHUNK = 1 << 20
_NEAR_END = 20
"""Characters before the end of the window within which an error may come from the end of the window."""
_BLANK = re.compile(r"[ \t\r\n]*")


class Window:
    """The part of a JSON file that starts at the next value or sign. Whitespace is skipped after each.

    `must` says what the file must hold, for error messages. All methods raise UserError for other content.
    """

    def __init__(self, path: Path, file: BinaryIO, must: str):
        self._path, self._must = path, must
        self._file = io.TextIOWrapper(file, encoding="utf-8-sig")
        self._values = JsonValues()
        self._text, self._at, self._ended = "", 0, False
        self._line, self._counted = 1, 0
        self._skip_blanks()

    @property
    def line(self) -> int:
        """The number of the line at which the window starts."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def at_sign(self, sign: str) -> bool:
        """Return True if the next character is `sign`."""
        return self._text[self._at : self._at + 1] == sign

    def expect(self, sign: str, wanted: str = "") -> None:
        """Move behind `sign`. `wanted`: all the signs that could stand here, for the message."""
        if not self.at_sign(sign):
            raise self._error(f"expected {' or '.join(wanted or sign)}")
        self._at += 1
        self._skip_blanks()

    def key(self) -> str:
        """Return the key of a member, a text, and move behind it."""
        if not self.at_sign('"'):
            raise self._error("expected a key in quotes")
        return self.value()

    def value(self) -> Any:
        """Return the next value, and move behind it. It is a RecordError if it is JSON but cannot be a record."""
        while True:
            try:
                value, end = self._values.parse_at(self._text, self._at)
            except RecursionError:
                raise self._error("nested too deeply") from None
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _NEAR_END
                if self._ended or not cut:
                    self._at = min(error.pos, len(self._text))
                    raise self._error(f"not JSON ({error.msg})") from error
            else:
                if end < len(self._text) or self._ended:
                    self._at = end
                    self._skip_blanks()
                    return value
            self._grow()

    def rest(self) -> str:
        """Return what follows, or its beginning; "" at the end of the file."""
        return self._text[self._at :]

    def _skip_blanks(self) -> None:
        while True:
            self._at = _BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or self._ended:
                return
            self._grow()

    def _grow(self) -> None:
        """Drop what was read, and double what remains, so that the time for a long value stays linear."""
        rest = self._text[self._at :] if self.line else ""
        if len(rest) > most_bytes():
            raise self._error(f"a record {too_long()}")
        try:
            more = self._file.read(max(_CHUNK, len(rest)))
        except UnicodeDecodeError as error:
            raise self._error(f"not UTF-8 text ({error.reason})") from error
        self._text, self._at, self._counted, self._ended = rest + more, 0, 0, not more
        if has_too_many_values(self._text):
            raise self._error(f"a record has too many values. {raise_limit('text_mb')}")

    def _error(self, what: str) -> UserError:
        return UserError(f"{self._path}: line {self.line}: {what}. {self._must}")

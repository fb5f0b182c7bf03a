"""Parse the Thrift structures of a Parquet file (compact protocol) within bounds, before pyarrow allocates for them."""

from typing import Any, NamedTuple, Optional

DEEPEST = 16
"""Structures inside each other."""
MOST = 64
"""Elements of a list for which no bound is given."""
BYTE, DOUBLE, BINARY, STRUCT = 3, 7, 8, 12
BOOLEANS, INTEGERS, LISTS = (1, 2), (4, 5, 6), (9, 10)


class Malformed(ValueError):
    """The bytes are not a Thrift structure, or exceed a bound."""


class Field(NamedTuple):
    """A field to return. `most`: elements, for a list. `fields`: what to return of its structures, by number."""

    most: int = MOST
    fields: Optional["Fields"] = None


Fields = dict[int, Field]
SKIPPED = Field()


def parse(data: bytes, wanted: Fields) -> tuple[dict[int, Any], int]:
    """Return the `wanted` fields of the structure at the start of `data`, by number, and its size in bytes.

    Raise Malformed, and IndexError if `data` ends within the structure.
    """
    parser = _Parser(data)
    return parser.struct(wanted, 0), parser.at


class _Parser:
    """Written for speed: an hour of video has dozens of row groups, and a payload file thousands."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def struct(self, wanted: Fields, depth: int) -> dict[int, Any]:
        if depth > DEEPEST:
            raise Malformed("nested too deeply")
        data, found, number = self.data, dict[int, Any](), 0
        while True:
            head = data[self.at]
            self.at += 1
            if not head:
                return found
            kind = head & 15
            number = number + (head >> 4) if head >> 4 else self.integer()
            if kind in INTEGERS:
                byte = data[self.at]
                if byte < 128:
                    self.at += 1
                    value: Any = (byte >> 1) ^ -(byte & 1)
                else:
                    value = self.integer()
            elif kind == BINARY:
                value = None
                self.skip(self.varint())
            elif kind in BOOLEANS:
                value = kind == 1
            else:
                value = self.value(kind, wanted.get(number, SKIPPED), depth)
            if number in wanted:
                found[number] = value

    def value(self, kind: int, field: Field, depth: int) -> Any:
        if kind in INTEGERS:
            return self.integer()
        if kind == BINARY:
            self.skip(self.varint())
            return None
        if kind == STRUCT:
            return self.struct(field.fields or {}, depth + 1)
        if kind in LISTS:
            return self.list(field, depth + 1)
        if kind in (BYTE, DOUBLE, *BOOLEANS):  # in a list, a boolean is one byte
            self.skip(8 if kind == DOUBLE else 1)
            return None
        raise Malformed(f"has a field of the unknown type {kind}")

    def list(self, field: Field, depth: int) -> list[Any]:
        head = self.data[self.at]
        self.at += 1
        count, kind = head >> 4, head & 15
        count = self.varint() if count == 15 else count
        if count > field.most:
            raise Malformed(f"has a list of {count:,} elements where at most {field.most:,} belong")
        if depth > DEEPEST:
            raise Malformed("nested too deeply")
        return [self.value(kind, field, depth) for _ in range(count)]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise Malformed("has a number of more than 64 bits")

    def integer(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            raise IndexError

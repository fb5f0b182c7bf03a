"""Parse YAML and JSON that somebody else wrote: bounded in size and depth, without duplicate keys, one error line."""

import json
import reprlib
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ma2mba.errors import UserError
from ma2mba.files import open_regular, read_bounded
from ma2mba.strings import SHOWN, fits_utf8, shorten

RECIPE_BYTES = 1 << 20
"""Bytes of the largest accepted recipe."""
JSON_BYTES = 64 << 20
"""Bytes of the largest accepted JSON file that describes a run, a model or a shard folder."""
LINE_BYTES = 1 << 20
"""Bytes of the longest accepted line of a file of JSON lines."""
JSON_VALUES = 1_500_000
"""Values of the largest accepted JSON text: small values take up to 300 bytes of memory each."""
NODES = 100_000
"""Values that a YAML file may hold after its aliases are replaced by what they stand for."""
INTEGER_BITS = 256
"""Bits of the largest integer in JSON: more than the state of any random generator."""
LISTED = 50
"""Most problems of a file that a message lists."""


def brief(value: Any) -> str:
    """Return the repr of a value that may be huge or deep, in at most about SHOWN characters."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = SHOWN
    return shorten(shown.repr(value))


def listing(path: Path | str, heading: str, problems: Sequence[str]) -> str:
    """Return a message about a file: one line for one problem; for several, the heading and a line for each."""
    if len(problems) == 1:
        return f"{path}: {problems[0]}"
    more = [f"and {len(problems) - LISTED:,} more"] if len(problems) > LISTED else []
    return "\n  ".join([f"{path}: {heading}", *problems[:LISTED], *more])


def parse_integer(digits: str) -> int:
    """Return the integer of decimal digits. Raise ValueError for more than INTEGER_BITS bits."""
    return _bounded(int(digits), INTEGER_BITS)


def _bounded(value: int, bits: int) -> int:
    if value.bit_length() > bits:
        raise ValueError(f"an integer of {value.bit_length():,} bits, and at most {bits} are read")
    return value


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys, more than NODES values, integers beyond 64 bits, and NUL or half a
    surrogate pair in text.
    """

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _expanded(node, {}, set())
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise ValueError(f"line {key.start_mark.line + 1}: the key {shorten(key.value)} is given twice")
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if "\0" in value or not fits_utf8(value):
            raise ValueError(f"line {node.start_mark.line + 1}: {brief(value)} holds a character that no text may hold")
        return value

    def construct_yaml_int(self, node: Any) -> int:
        return _bounded(super().construct_yaml_int(node), 64)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _expanded(node: Any, sizes: dict[int, int], above: set[int]) -> int:
    """Return the number of values of a node with its aliases expanded. Raise ValueError beyond NODES."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in above:
        raise ValueError(f"line {node.start_mark.line + 1}: an alias contains itself")
    if id(node) not in sizes:
        above.add(id(node))
        inner = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else node.value
        sizes[id(node)] = 1 + sum(_expanded(child, sizes, above) for child in inner)
        above.remove(id(node))
        if sizes[id(node)] > NODES:
            raise ValueError(f"its keys, values and aliases stand for more than {NODES:,} values")
    return sizes[id(node)]


def parse_yaml(text: str | bytes) -> Any:
    """Return the value of a YAML text. Raise ValueError in one line if it is not YAML or exceeds a bound."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(shorten(" ".join(str(error).split()), 2 * SHOWN)) from error
    except (LookupError, OverflowError, AttributeError, TypeError) as error:  # of PyYAML: "!!bool x", for example
        raise ValueError("a value does not fit its tag") from error


def parse_json(text: str | bytes, values: int = JSON_VALUES) -> Any:
    """Return the value of a JSON text.

    Raise ValueError in one line if it is not JSON in UTF-8, is nested too deeply, has a key twice or a huge number, or
    may have more than `values` values.
    """
    marks = [text.count(mark) for mark in ",[{"] if isinstance(text, str) else [text.count(mark) for mark in b",[{"]
    if sum(marks) > values:
        raise ValueError(f"more than {values:,} values")
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates, parse_int=parse_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {brief(twice)} is given twice")
    return values


def read_yaml(path: Path | str, most: int = RECIPE_BYTES) -> Any:
    """Return the value of a YAML file. Raise UserError with one line if it cannot be read, is too large or not YAML."""
    content = read_bounded(path, most)
    try:
        return parse_yaml(content)
    except ValueError as error:
        raise UserError(f"{path}: not YAML ({error}). Correct the file") from error


def read_json(path: Path | str, most: int = JSON_BYTES) -> Any:
    """Return the value of a JSON file. Raise UserError with one line if it cannot be read, is too large or not JSON."""
    content = read_bounded(path, most)
    try:
        return parse_json(content)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}). Write or copy the file again") from error


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines; nothing if the file does not exist.

    The last line may be cut off, as a crash leaves it. Raise UserError for any other line that is not a JSON object in
    UTF-8, or is longer than LINE_BYTES.
    """
    if not path.exists():
        return
    with open_regular(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES + 1), b""), 1):
            try:
                if len(line) > LINE_BYTES:
                    raise ValueError(f"longer than {LINE_BYTES:,} bytes")
                record = parse_json(line.decode())
                if not isinstance(record, dict):
                    raise ValueError("not a JSON object")
            except ValueError as error:
                if isinstance(error, json.JSONDecodeError) and not line.endswith(b"\n"):
                    return
                reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error
                raise UserError(f"{path}: line {number}: {reason}. Copy the file again, or remove it") from error
            yield record

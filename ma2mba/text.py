"""Parse YAML and JSON that somebody else wrote: bounded in size and depth, without duplicate keys, one error line."""

import json
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ma2mba.errors import UserError
from ma2mba.files import read_bounded

RECIPE_BYTES = 1 << 20
"""Bytes of the largest accepted recipe."""
JSON_BYTES = 64 << 20
"""Bytes of the largest accepted JSON file that describes a run, a model or a shard folder."""
NODES = 100_000
"""Values that a YAML file may hold after its aliases are replaced by what they stand for."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys, and aliases that expand to more than NODES values."""

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
                    raise ValueError(f"line {key.start_mark.line + 1}: the key {key.value} is given twice")
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


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
            raise ValueError(f"its aliases stand for more than {NODES:,} values")
    return sizes[id(node)]


def parse_yaml(text: str | bytes) -> Any:
    """Return the value of a YAML text. Raise ValueError in one line if it is not YAML or exceeds a bound."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (LookupError, OverflowError, AttributeError, TypeError) as error:  # of PyYAML: "!!bool x", for example
        raise ValueError("a value does not fit its tag") from error


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raise ValueError in one line if it is not JSON in UTF-8, is nested too deeply, has a key twice or a huge number.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r} is given twice")
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

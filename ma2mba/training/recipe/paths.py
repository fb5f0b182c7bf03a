"""Paths in a recipe: made absolute where they are read, so that nothing else depends on the current directory.

A path in a recipe file counts from the file's folder. A path on the command line counts from the current directory.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ma2mba.hub import hub_name
from ma2mba.shipped import POLICIES, policy_names
from ma2mba.text import brief

Key = tuple[str, ...]
"""The way to a value in a recipe, as ("data", "0", "path")."""


def make_absolute(values: dict[str, Any], folder: Path) -> dict[Key, str]:
    """Replace every relative path in `values`, a recipe or a piece of one, by the absolute path from `folder`.

    Names stay names: `resume: auto`, a shipped ZeRO policy (`ds_configs/zero1.json` becomes zero1), and the hub name of
    a vision encoder, when there is no such folder. Returns a message for each path that exists only in the current
    directory, and for each text that cannot be a path, as one of 100,000 letters.
    """
    problems = {}
    for key, holder, index in _places(values):
        text = holder[index]
        try:
            holder[index] = _absolute(key, text, folder)
            is_path = holder[index] != text or key[-1] == "vision"
            if is_path and not _join(folder, text).exists() and (Path.cwd() / text).exists():
                problems[key] = _message(key, text, folder)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            problems[key] = f"{'.'.join(key)}: {brief(text)} cannot be a path ({reason}). Write another one"
    return problems


def _places(values: dict[str, Any]) -> Iterator[tuple[Key, Any, Any]]:
    """Yield each path's key, the dict or list that holds the path, and the index there."""
    for key in ("data", "exclude", "run", "init_from", "resume", "zero_config"):
        value = values.get(key)
        if isinstance(value, str):
            yield (key,), values, key
        elif key == "init_from" and isinstance(value, dict):
            yield from (((key, n), value, n) for n in ("language_model", "vision") if isinstance(value.get(n), str))
        elif key == "data" and isinstance(value, list):
            for n, entry in enumerate(value):
                if isinstance(entry, str):
                    yield (key, str(n)), value, n
                elif isinstance(entry, dict) and isinstance(entry.get("path"), str):
                    yield (key, str(n), "path"), entry, "path"


def _absolute(key: Key, text: str, folder: Path) -> str:
    path = _join(folder, text)
    if key == ("resume",) and text in ("auto", "none"):
        return text
    if key == ("zero_config",):
        if text in policy_names():
            return text
        is_shipped = path.parent == POLICIES or (not path.is_file() and text in _policies_by_path())
        return path.stem if is_shipped else str(path)
    if key[0] == "init_from" and not path.is_dir():
        if key[-1] == "vision" and not text.startswith("."):
            return text
        if hub_name(text):
            return text
    return str(path)


def _policies_by_path() -> list[str]:
    """Return the shipped policies as a recipe may name them from anywhere, ds_configs/zero1.json for example."""
    return [f"ds_configs/{name}.json" for name in policy_names()]


def _join(folder: Path, text: str) -> Path:
    """Return an absolute path without "..", unless a symbolic link gives ".." another meaning."""
    path = folder.absolute() / text
    plain = Path(os.path.abspath(path))
    return plain if os.path.realpath(plain) == os.path.realpath(path) else path


def _message(key: Key, text: str, folder: Path) -> str:
    name, path = ".".join(key), _join(folder, text)
    from_folder = os.path.relpath(Path.cwd() / text, folder.absolute())
    option = f"'data=[{text}, ...]'" if key[0] == "data" and len(key) > 1 else f"{name}={text}"
    return (
        f"{name}: {path} does not exist, but {text} exists in the current directory. A path in a recipe counts from "
        f"the recipe's folder: write {name}: {from_folder} in the recipe, or {option} on the command line"
        + (f". To start a new run, create {path}" if key == ("run",) else "")
    )

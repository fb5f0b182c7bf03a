"""JSON files of records, and what the LLaVA family of formats shares."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.clips import RecordError
from ma2mba.errors import UserError
from ma2mba.model.conversation import Turn

MARK = "<image>"
"""Stands in the text for the image or the video."""
_ROLES = {"human": "user", "gpt": "assistant"}


def json_list(path: Path) -> Iterator[tuple[str, Any]]:
    """("record 1", value), ... of a file that holds one JSON list. Raises UserError when it does not."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); this format is one JSON list of records") from error
    if not isinstance(content, list):
        raise UserError(f"{path}: holds a JSON {type(content).__name__}; this format is one JSON list of records")
    return ((f"record {i}", value) for i, value in enumerate(content, 1))


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """("line 1", value), ... of a file with a JSON value a line; a RecordError stands for a line that is no JSON."""
    with open(path, "rb") as file:
        for i, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield f"line {i}", json.loads(line)
            except ValueError as error:
                yield f"line {i}", RecordError(f"not JSON ({error})")


def need(record: Any, key: str, kind: type) -> Any:
    """record[key], which must be a non-empty `kind`. Raises RecordError."""
    if not isinstance(record, dict):
        raise RecordError(f"is a {type(record).__name__}, not an object")
    if key not in record:
        raise RecordError(f"has no {key}")
    if not isinstance(record[key], kind) or isinstance(record[key], bool):
        raise RecordError(f"{key} is a {type(record[key]).__name__}, not a {kind.__name__}")
    if kind in (str, list) and not record[key]:
        raise RecordError(f"{key} is empty")
    return record[key]


def record_id(record: Any) -> str:
    """The id as text; some files hold numbers."""
    if isinstance(record, dict) and isinstance(record.get("id"), int):
        return str(record["id"])
    return need(record, "id", str)


def media_path(root: Path, name: str) -> Path:
    """The medium below `root`. Raises RecordError for a path that leaves it."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise RecordError(f"the path {name} does not stay below the media folder")
    return root / name


def talk(record: Any, *, marked: bool) -> tuple[Turn, ...]:
    """The conversation, human and gpt by turns, without the mark.

    Raises RecordError for other roles or order, an empty answer, or unless the mark stands once, in the first human
    turn (`marked`), or nowhere.
    """
    turns = []
    for i, turn in enumerate(need(record, "conversations", list)):
        role, text = need(turn, "from", str), need(turn, "value", str)
        expected = ("human", "gpt")[i % 2]
        if role != expected:
            raise RecordError(f"turn {i + 1} is from {role}, not {expected}")
        if text.count(MARK) != (1 if marked and i == 0 else 0):
            raise RecordError(f"turn {i + 1} holds {MARK} {text.count(MARK)} times")
        text = text.replace(MARK, "").strip()
        if not text and role == "gpt":
            raise RecordError(f"turn {i + 1} says nothing")
        turns.append(Turn(_ROLES[role], text))  # type: ignore[arg-type]
    if len(turns) % 2:
        raise RecordError("the last human turn has no answer")
    return tuple(turns)

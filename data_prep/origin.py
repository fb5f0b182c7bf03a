"""Remember where the sources of a shard folder are, so that a repair finds them.

origin.json travels with a folder, so a stranger may have written it. A repair follows its paths only if this user has
built or encoded from the same paths here: every build also notes the paths in the user's own state folder.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ma2mba.errors import UserError
from ma2mba.files import atomic_write, inside
from ma2mba.shards.format import ORIGIN_FILE
from ma2mba.shards.manifest import hash_json
from ma2mba.text import read_json

ORIGIN_BYTES = 1 << 16
PATHS = ("recipe", "shards", "encoder")
"""The keys of origin.json that name files."""
MACHINE_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def write_origin(folder: Path, origin: dict[str, Any]) -> None:
    """Write origin.json, and note its paths in the user's state folder if that can be written."""
    with atomic_write(folder / ORIGIN_FILE) as file:
        json.dump(origin, file)
    with suppress(OSError, UserError, RuntimeError), atomic_write(_note(origin)) as file:
        json.dump(_paths(origin), file)


def read_origin(folder: Path) -> dict[str, Any]:
    """Return the content of origin.json, or {} if there is none that can be read.

    `memory` is at most the memory of this machine.
    """
    try:
        content = read_json(inside(folder, ORIGIN_FILE, folder), ORIGIN_BYTES)
    except UserError:
        return {}
    if not isinstance(content, dict) or not all(isinstance(content.get(key, ""), str) for key in PATHS):
        return {}
    memory = content.get("memory")
    limits = {"memory": min(memory, MACHINE_MEMORY)} if isinstance(memory, int) and memory >= 64 << 20 else {}
    return _paths(content) | limits


def is_known(origin: dict[str, Any]) -> bool:
    """Return True if this user has built or encoded from these paths."""
    try:
        return _note(origin).is_file()
    except (OSError, RuntimeError):
        return False


def _paths(origin: dict[str, Any]) -> dict[str, Any]:
    return {key: origin[key] for key in PATHS if key in origin}


def _note(origin: dict[str, Any]) -> Path:
    """Return the file that notes these paths. Raise RuntimeError for a user without a home folder."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "ma2mba" / "origins" / f"{hash_json(_paths(origin))}.json"

"""Remember where the sources of a shard folder are, so that a repair finds them.

origin.json travels with a folder, so a stranger may have written it. A repair follows its paths only if `proof` shows
that this user wrote them: an HMAC of the paths, whose key never leaves the user's own state folder.
"""

import hashlib
import hmac
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from ma2mba.errors import UserError
from ma2mba.files import atomic_write, inside, read_bounded
from ma2mba.shards.format import ORIGIN_FILE
from ma2mba.text import read_json

ORIGIN_BYTES, KEY_BYTES = 1 << 16, 32
PATHS = ("recipe", "shards", "encoder")
"""The keys of origin.json that name files."""
MACHINE_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def write_origin(folder: Path, origin: dict[str, Any]) -> None:
    """Write origin.json, with a proof that this user wrote it. Create the user's key if there is none."""
    key = _key() or _new_key()
    proof = {"proof": _proof(key, origin)} if key else {}
    with atomic_write(folder / ORIGIN_FILE) as file:
        json.dump(origin | proof, file)


def read_origin(folder: Path) -> tuple[dict[str, Any], bool]:
    """Return the content of origin.json, and whether this user wrote its paths; ({}, False) if it cannot be read.

    `memory` is at most the memory of this machine.
    """
    try:
        content = read_json(inside(folder, ORIGIN_FILE, folder), ORIGIN_BYTES)
    except UserError:
        return {}, False
    if not isinstance(content, dict) or not all(isinstance(content.get(key, ""), str) for key in (*PATHS, "proof")):
        return {}, False
    memory = content.get("memory")
    limits = {"memory": min(memory, MACHINE_MEMORY)} if isinstance(memory, int) and memory >= 64 << 20 else {}
    paths, key = {name: content[name] for name in PATHS if name in content}, _key()
    own = key is not None and hmac.compare_digest(content.get("proof", "").encode(), _proof(key, paths).encode())
    return paths | limits, own


def _proof(key: bytes, origin: dict[str, Any]) -> str:
    paths = json.dumps({name: origin[name] for name in PATHS if name in origin}, sort_keys=True)
    return hmac.new(key, paths.encode(), hashlib.sha256).hexdigest()


def _key_file() -> Path:
    """Return the file of the user's key. Raise RuntimeError for a user without a home folder."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ma2mba" / "origin.key"


def _key() -> bytes | None:
    try:
        key = read_bounded(_key_file(), KEY_BYTES)
    except (UserError, RuntimeError):
        return None
    return key if len(key) == KEY_BYTES else None


def _new_key() -> bytes | None:
    """Create the user's key, readable by the user alone. Return None if it cannot be written."""
    with suppress(OSError, RuntimeError):
        path = _key_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key := secrets.token_bytes(KEY_BYTES))
        return key
    return None

"""The folder of uploads. It survives a restart, and what a killed server left half-written is deleted.

CONTENT.video and CONTENT.png hold media, named by the SHA-256 of their bytes: media with equal bytes are one file,
whoever keeps them. ID.json says who keeps a medium. Names from clients are never names of files.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ma2mba.errors import UserError
from ma2mba.files import atomic_path, refuse_link
from ma2mba.serving.contract import Kind, Medium, Stored
from ma2mba.text import read_json

SUFFIXES: dict[Kind, str] = {"video": ".video", "image": ".png"}
"""FrameReader reads a file with a picture's suffix as a picture, whichever picture it holds."""
PART, RECORD, LOCK = ".part", ".json", ".lock"
RECORD_BYTES = 16 << 10
CONTENT = re.compile("[0-9a-f]{64}")
ID = re.compile("(?:video|image)-[A-Za-z0-9_-]{43}")
OURS = re.compile(rf"(?:{CONTENT.pattern}\.(?:video|png)|[A-Za-z0-9_-]+\.part|{ID.pattern}\.json|\..+\.json\..+\.tmp)")
"""The names of files that the shelf has written. It deletes no other file."""


@dataclass
class Entry:
    """A medium that an owner keeps.

    owner    the SHA-256 of the owner's name, which may be a session's secret
    url      of a file below the media root, which is not copied; "" for a file of the shelf
    listed   the owner knows the id. Media of questions are kept for the next question, under an id that nobody knows
    used     when it was last used, in seconds since 1970
    """

    id: str
    owner: str
    medium: Medium
    bytes: int
    duration: float
    created: float
    used: float
    listed: bool = True
    url: str = ""

    def stored(self, keep_seconds: float) -> Stored:
        return Stored(self.id, self.medium, self.bytes, self.duration, self.created, self.used + keep_seconds)


def owner_key(owner: str) -> str:
    return hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()


def new_id(kind: Kind) -> str:
    """Return an id that cannot be guessed."""
    return f"{kind}-{secrets.token_urlsafe(32)}"


class Shelf:
    """The media that owners keep, in memory and in `folder`. `forget(content)`: its last owner is gone."""

    def __init__(self, folder: Path, forget: Callable[[str], None]):
        self._folder, self._forget = folder, forget
        self._entries: dict[str, Entry] = {}
        self._in_use: Counter[Path] = Counter()
        self._lock: int | None = None

    def open(self) -> None:
        """Lock the folder, read its records, and delete what belongs to no record. Raise UserError."""
        try:
            self._open()
        except OSError as error:
            raise UserError(f"{self._folder}: cannot be used ({error.strerror}). Name another --cache") from error

    def _open(self) -> None:
        refuse_link(self._folder)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._folder.stat().st_uid != os.geteuid():
            raise UserError(f"{self._folder}: belongs to another user. Name another --cache")
        self._folder.chmod(0o700)
        self._lock = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            remedy = "Name another --cache: each server needs its own"
            raise UserError(f"{self._folder}: another server uses this folder. {remedy}") from None
        names = sorted(name for name in os.listdir(self._folder) if OURS.fullmatch(name))
        for name in names:
            if name.endswith(RECORD) and (entry := self._read(name)):
                self._entries[entry.id] = entry
        self._delete_others(names)

    def _delete_others(self, names: list[str]) -> None:
        """Delete the files that belong to no entry, and the states of their media."""
        known = {name for entry in self for name in (f"{entry.id}{RECORD}", entry.medium.path.name)}
        for name in set(names) - known:
            (self._folder / name).unlink()
            if CONTENT.match(name):
                self._forget(name[:64])

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, id: str) -> Entry | None:
        return self._entries.get(id)

    def of(self, owner: str) -> list[Entry]:
        return [entry for entry in self if entry.owner == owner]

    def like(self, content: str, kind: Kind | None) -> Entry | None:
        """Return an entry of any owner with these bytes in the folder; None as kind: of either kind."""
        return next(
            (e for e in self if e.medium.content == content and kind in (None, e.medium.kind) and not e.url), None
        )

    def part(self) -> Path:
        """Return a new path for a file that is being written."""
        return self._folder / f"{secrets.token_urlsafe(16)}{PART}"

    def place(self, content: str, kind: Kind) -> Path:
        """Return the path of a medium in the folder."""
        return self._folder / f"{content}{SUFFIXES[kind]}"

    def add(self, entry: Entry, part: Path | None = None) -> None:
        """Add an entry. Its file is moved from `part`, unless there is a file with its bytes. Raise OSError."""
        self._write(entry)
        if part and not entry.medium.path.exists():
            os.replace(part, entry.medium.path)
        self._entries[entry.id] = entry

    def touch(self, entry: Entry) -> None:
        """Say that an entry is used now."""
        entry.used = time.time()
        with contextlib.suppress(OSError):
            os.utime(self._folder / f"{entry.id}{RECORD}", (entry.used, entry.used))

    def hold(self, medium: Medium) -> None:
        """Say that a question uses a medium. It is not deleted when its time is over."""
        self._in_use[medium.path] += 1

    def release(self, medium: Medium) -> None:
        self._in_use[medium.path] -= 1
        if self._in_use[medium.path] <= 0:
            del self._in_use[medium.path]
        for entry in self:
            if entry.medium.path == medium.path:
                self.touch(entry)

    def idle(self, entry: Entry) -> bool:
        return not self._in_use[entry.medium.path]

    def remove(self, entry: Entry) -> None:
        """Delete an entry; its file too, and the states of the medium, if nobody else keeps it.

        The record goes last: if the server is killed meanwhile, its next start deletes the rest. Files below the media
        root, and their states, are not the clients' own: they stay.
        """
        del self._entries[entry.id]
        if not entry.url:
            if not any(other.medium.content == entry.medium.content for other in self):
                self._forget(entry.medium.content)
            if not any(other.medium.path == entry.medium.path for other in self):
                entry.medium.path.unlink(missing_ok=True)
        (self._folder / f"{entry.id}{RECORD}").unlink(missing_ok=True)

    def _write(self, entry: Entry) -> None:
        medium = entry.medium
        record = {
            "owner": entry.owner,
            "content": medium.content,
            "kind": medium.kind,
            "name": medium.name,
            "bytes": entry.bytes,
            "duration": entry.duration,
            "created": entry.created,
            "listed": entry.listed,
            "url": entry.url,
            "path": str(medium.path) if entry.url else "",
        }
        path = self._folder / f"{entry.id}{RECORD}"
        with atomic_path(path, sync=False) as temporary:
            temporary.write_text(json.dumps(record), encoding="utf-8")

    def _read(self, name: str) -> Entry | None:
        """Return the entry of a record; None if the record is damaged, or its file is gone."""
        try:
            record, used = read_json(self._folder / name, RECORD_BYTES), (self._folder / name).stat().st_mtime
            return self._entry(name.removesuffix(RECORD), record, used)
        except (UserError, OSError, KeyError, TypeError, ValueError):
            return None

    def _entry(self, id: str, record: dict[str, Any], used: float) -> Entry | None:
        kind: Kind = "video" if record["kind"] == "video" else "image"
        content, owner, url = str(record["content"]), str(record["owner"]), str(record["url"])
        if not CONTENT.fullmatch(content):
            return None
        path = Path(record["path"]) if url else self.place(content, kind)
        size, duration, created = int(record["bytes"]), float(record["duration"]), float(record["created"])
        if not url and path.lstat().st_size != size:
            return None
        medium = Medium(path, content, kind, str(record["name"]))
        return Entry(id, owner, medium, size, duration, created, used, bool(record["listed"]), url)

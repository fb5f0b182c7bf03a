"""The library: what clients may ask about. It keeps uploads and fetched media, and opens files below the media root.

Nothing here looks into a medium: a worker process checks it first (media_check.py), and reads it later.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ma2mba.errors import UserError
from ma2mba.serving.contract import Kind, Medium, Stored
from ma2mba.serving.data_urls import decode, decoded_bytes
from ma2mba.serving.errors import Refused
from ma2mba.serving.incoming import Incoming, Written, charge
from ma2mba.serving.local_files import LocalFiles, shown_name
from ma2mba.serving.media_check import Checker
from ma2mba.serving.remote import Fetcher
from ma2mba.serving.room import GB, Room
from ma2mba.serving.settings import Settings
from ma2mba.serving.shelf import ID, Entry, Shelf, new_id, owner_key
from ma2mba.serving.turnstile import Turnstile
from ma2mba.terminal import one_line
from ma2mba.text import shorten
from ma2mba.video.length import Length

SWEEP_SECONDS = 15.0
"""Seconds between two looks for media whose time is over."""
FRESH_SECONDS = 600.0
"""Seconds for which a fetched URL is not fetched again for the same owner."""
LETTERS = 120
"""Letters of an id or a URL that are shown."""


@dataclass(frozen=True)
class Coming:
    """A medium that comes. `kind`: None, if any will do. `listed`: its owner will know its id."""

    name: str
    owner: str
    kind: Kind | None
    listed: bool


class MediaLibrary:
    """The `contract.Library`. All its methods are called in the thread of the event loop.

    Creating it locks the folder of uploads and deletes what a killed server left there. Raise UserError if the folder
    cannot be used.
    `forget` is called with the SHA-256 of a medium when its last owner is gone: its states are to be deleted.
    """

    def __init__(self, settings: Settings, forget: Callable[[str], None] = lambda content: None):
        self._settings, self._keep_seconds = settings, settings.keep_minutes * 60
        self._threads = ThreadPoolExecutor(8, "library")
        self._shelf = Shelf(settings.uploads, forget)
        each, total = int(settings.client_upload_gb * GB), int(settings.upload_total_gb * GB)
        self._room = Room(settings.uploads, each, total, self._make_room)
        self._incoming = Incoming(self._room, settings.max_upload, self._threads)
        self._fetcher = Fetcher(settings.domains, settings.allow_http)
        self._checker = Checker(settings.max_video_hours)
        self._turnstile = Turnstile()
        self._fetched: dict[tuple[str, str, Kind | None], tuple[str, float]] = {}
        self._ended: Counter[str] = Counter()
        self._files = LocalFiles(settings.media_root, self._checker, self._threads)
        self._sweeper: asyncio.Task[None] | None = None
        _check_apart(settings.cache, settings.media_root)
        self._shelf.open()
        for entry in self._shelf:
            self._room.count(entry.owner, _charged(entry))
        self.sweep()

    async def start(self) -> None:
        self._sweeper = asyncio.create_task(self._sweep())

    async def close(self) -> None:
        if self._sweeper:
            self._sweeper.cancel()
        self._checker.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._shelf.close()

    async def store(self, chunks: AsyncIterator[bytes], name: str, owner: str, length: int | None = None) -> Stored:
        async with self._turnstile.turn(key := owner_key(owner)):
            entry = await self._take(chunks, Coming(shown_name(name), key, None, True), length)
        return entry.stored(self._keep_seconds)

    async def keep(self, url: str, owner: str) -> Stored:
        entry = await self._open(url, None, owner_key(owner), listed=True)
        return entry.stored(self._keep_seconds)

    async def fetch(self, url: str, kind: Kind, owner: str) -> Medium:
        key = owner_key(owner)
        if ID.fullmatch(url):
            entry = self._find(url, key)
            medium = (await self._files.open(entry.url, entry.medium.kind))[0] if entry.url else entry.medium
        elif _scheme(url) == "file":
            medium, _ = await self._files.open(url, kind)
        else:
            medium = (await self._open(url, kind, key, listed=False)).medium
        self._shelf.hold(medium)
        return medium

    def hold(self, medium: Medium) -> None:
        self._shelf.hold(medium)

    def release(self, medium: Medium) -> None:
        self._shelf.release(medium)

    def find(self, id: str, owner: str) -> Stored:
        return self._find(id, owner_key(owner)).stored(self._keep_seconds)

    def list(self, owner: str) -> list[Stored]:
        kept = sorted(self._shelf.of(owner_key(owner)), key=lambda entry: entry.created)
        return [entry.stored(self._keep_seconds) for entry in kept if entry.listed]

    async def delete(self, id: str, owner: str) -> None:
        self._remove(self._find(id, owner_key(owner)))

    async def end(self, owner: str) -> None:
        key = owner_key(owner)
        if key in self._turnstile.coming:
            self._ended[key] += 1
        for entry in self._shelf.of(key):
            self._remove(entry)

    def status(self) -> dict[str, float]:
        owners = len({entry.owner for entry in self._shelf})
        return {
            "media": len(self._shelf),
            "media_bytes": self._room.bytes,
            "media_owners": owners,
            "media_coming": self._turnstile.coming.total(),
        }

    def sweep(self) -> None:
        """Delete the media whose time is over, and that no question uses."""
        before = time.time() - self._keep_seconds
        for entry in self._shelf:
            if entry.used < before and self._shelf.idle(entry):
                self._remove(entry)
        for owner in self._ended.keys() - self._turnstile.coming.keys():
            del self._ended[owner]
        stale = time.monotonic() - FRESH_SECONDS
        self._fetched = {key: value for key, value in self._fetched.items() if value[1] > stale}

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            with contextlib.suppress(OSError):  # a disk that fails now may work later
                self.sweep()

    def _find(self, id: str, owner: str) -> Entry:
        """Return an entry. The id of another owner is as unknown as one that does not exist."""
        entry = self._shelf.get(id)
        if entry is None or entry.owner != owner or not entry.listed:
            shown = shorten(one_line(id), LETTERS)
            raise Refused(f"{shown}: no such video. Upload it again: videos are deleted after a time", 404, "not_found")
        return entry

    def _remove(self, entry: Entry) -> None:
        self._shelf.remove(entry)
        self._room.give_back(entry.owner, _charged(entry))

    def _make_room(self, owner: str | None, bytes: int) -> None:
        """Delete media that nobody knows the id of and no question uses, the least recently used first."""
        spare = [e for e in self._shelf if not e.listed and owner in (None, e.owner) and self._shelf.idle(e)]
        for entry in sorted(spare, key=lambda entry: entry.used):
            if bytes <= 0:
                return
            self._remove(entry)
            bytes -= _charged(entry)

    async def _open(self, url: str, kind: Kind | None, owner: str, *, listed: bool) -> Entry:
        """Return the entry of what a URL names; of a known one, without fetching it again."""
        scheme = _scheme(url)
        if scheme == "file":
            (medium, duration), now = await self._files.open(url, kind), time.time()
            entry = Entry(new_id(medium.kind), owner, medium, 0, duration, now, now, listed, url)
            self._room.take(owner, _charged(entry))
            self._shelf.add(entry)
            return entry
        if scheme == "data":
            async with self._turnstile.turn(owner):
                return await self._take(_decoded(url), Coming("data URL", owner, kind, listed), decoded_bytes(url))
        if scheme not in ("https", "http"):
            shown = shorten(one_line(url), LETTERS)
            raise Refused(
                f"{shown}: neither an id nor a URL that this server opens. Use https:, data: or file:, or upload it",
                code="invalid_url",
            )
        if not listed and (known := self._known(owner, url, kind)):
            return known
        async with self._turnstile.turn(owner), self._fetcher.open(url) as remote:
            coming = Coming(shown_name(remote.name), owner, kind, listed)
            entry = await self._take(remote.blocks, coming, remote.length)
        self._fetched[owner, url, kind] = entry.id, time.monotonic()
        return entry

    def _known(self, owner: str, url: str, kind: Kind | None) -> Entry | None:
        id, when = self._fetched.get((owner, url, kind), ("", 0.0))
        return self._shelf.get(id) if time.monotonic() - when < FRESH_SECONDS else None

    async def _take(self, chunks: AsyncIterator[bytes], coming: Coming, length: int | None) -> Entry:
        """Write a medium, check it, and return its entry."""
        part, ended, name = self._shelf.part(), self._ended[coming.owner], coming.name
        try:
            written = await self._incoming.write(part, chunks, name, coming.owner, length)
            try:
                known = None if coming.listed else self._own(written.content, coming.kind, coming.owner)
                entry = known or await self._shelve(part, written, coming, ended)
            except BaseException:
                self._room.give_back(coming.owner, written.charged)
                raise
            if known:
                self._shelf.touch(known)
                self._room.give_back(coming.owner, written.charged)
            return entry
        except OSError as error:
            raise Refused(f"{name}: cannot be stored ({error.strerror}). Try again later", 503, "no_space") from error
        finally:
            part.unlink(missing_ok=True)

    async def _shelve(self, part: Path, written: Written, coming: Coming, ended: int) -> Entry:
        """Return a new entry for a file that was written. Bytes that another owner keeps are checked already."""
        content = written.content
        like = self._shelf.like(content, coming.kind)
        if like:
            facts = Length(like.medium.kind, like.duration)
        else:
            facts = await self._checker.check(part, coming.kind, coming.name)
        if self._ended[coming.owner] != ended:
            raise Refused(f"{coming.name}: the session has ended. Send it again in a new session", 409, "session_ended")
        medium, now = Medium(self._shelf.place(content, facts.kind), content, facts.kind, coming.name), time.time()
        entry = Entry(
            new_id(facts.kind), coming.owner, medium, written.bytes, facts.seconds, now, now, listed=coming.listed
        )
        self._shelf.add(entry, part)
        return entry

    def _own(self, content: str, kind: Kind | None, owner: str) -> Entry | None:
        """Return an owner's entry with these bytes."""
        own = (e for e in self._shelf.of(owner) if not e.url and e.medium.content == content)
        return next((entry for entry in own if kind in (None, entry.medium.kind)), None)


async def _decoded(url: str) -> AsyncIterator[bytes]:
    for block in decode(url):
        yield block


def _scheme(url: str) -> str:
    return url.partition(":")[0].lower() if ":" in url[:20] else ""


def _charged(entry: Entry) -> int:
    return charge(entry.bytes)


def _check_apart(cache: Path, root: Path | None) -> None:
    """Raise UserError if a `file:` URL could name what other clients have uploaded."""
    if root is None:
        return
    inner, outer = cache.resolve(), root.resolve()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise UserError(f"--media-root {root}: must not hold --cache {cache}, or lie in it. Name another folder")
    if not root.is_dir():
        raise UserError(f"--media-root {root}: no such folder. Name a folder with videos")

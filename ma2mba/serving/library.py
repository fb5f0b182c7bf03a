"""What clients may ask about: uploads, remote and local files. Makes a Medium of what a client names.

All methods are called in the event loop's thread. They raise Refused (refusals.py), MediaError for a medium that cannot
be used, whose message names the medium as the client does, and Busy. Times are seconds of `time.time()`.
"""

from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ma2mba.serving.contract import Medium


@dataclass(frozen=True)
class MediaRules:
    """What the library accepts and keeps.

    media_root     folder below which `file:` URLs may name files; None: no file
    domains        hosts of remote URLs: `example.org`, `*.example.org` for its subdomains, `http://example.org` to
                   accept http as well
    upload_bytes   bytes of one medium, uploaded, fetched or in a data URL
    video_hours    hours of one video
    client_bytes   bytes that one client may keep; client_files: how many media
    total_bytes    bytes that all clients may keep
    free_bytes     bytes of the disk that stay free
    keep_seconds   seconds after its last use after which an upload is deleted
    """

    media_root: Path | None = None
    domains: tuple[str, ...] = ()
    upload_bytes: int = 4 * 10**9
    video_hours: float = 8.0
    client_bytes: int = 16 * 10**9
    client_files: int = 200
    total_bytes: int = 200 * 10**9
    free_bytes: int = 2 * 10**9
    keep_seconds: float = 3600.0


@dataclass(frozen=True)
class Stored:
    """A medium that a client keeps on the server. `id` cannot be guessed, and only this client may use it."""

    id: str
    medium: Medium
    bytes: int
    duration: float
    created: float
    expires: float


class Library:
    """The media of all clients. `client` is the name of a client or of a page's session; it may be a secret.

    `folder` holds the uploads; one server uses it at a time, and it survives a restart. `forget` is called with the
    SHA-256 of a medium when the last client that keeps it is gone: its states are to be deleted.
    """

    def __init__(self, folder: Path, rules: MediaRules, forget: Callable[[str], None] = lambda content: None):
        self.rules = rules

    async def start(self) -> None:
        """Clean up what a killed server left, and delete media after their time from now on. Raise UserError."""

    async def stop(self) -> None:
        """Cancel what is being fetched. Uploads stay for the next start."""

    async def upload(self, blocks: AsyncIterable[bytes], name: str, client: str, size: int | None = None) -> Stored:
        """Store a medium that a client sends, and check it. `size`: the bytes that the client announces."""
        raise NotImplementedError

    async def store(self, url: str, client: str, kind: Literal["video", "image"] | None = None) -> Stored:
        """Store the medium of an `https:` or `data:` URL, and check it; None: a video or an image."""
        raise NotImplementedError

    async def medium(self, reference: str, kind: Literal["video", "image"], client: str) -> Medium:
        """Return the medium that a part of a question names: a `https:`, `data:` or `file:` URL, or an upload's id."""
        raise NotImplementedError

    def find(self, id: str, client: str) -> Stored:
        """Return an upload of this client. Raise NotFound, also if it is another client's."""
        raise NotImplementedError

    def uploads(self, client: str) -> list[Stored]:
        """Return what this client has uploaded or stored, the oldest first."""
        raise NotImplementedError

    def delete(self, id: str, client: str) -> None:
        """Delete an upload of this client. Raise NotFound."""

    def end(self, client: str) -> None:
        """Delete everything of a client: its session has ended."""

    @contextmanager
    def using(self, media: Iterable[Medium]) -> Iterator[None]:
        """Keep media while the block reads them or answers about them, even if their time is over."""
        yield

    def status(self) -> dict[str, float]:
        """Return numbers for /metrics: files and bytes kept, clients, uploads that are running."""
        return {}

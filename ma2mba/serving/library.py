"""The library: what clients may ask about. It keeps uploads, and opens what URLs name."""

from collections.abc import AsyncIterator, Callable

from ma2mba.serving.contract import Kind, Medium, Stored
from ma2mba.serving.settings import Settings


class MediaLibrary:
    """The `contract.Library`. All its methods are called in the thread of the event loop.

    `forget` is called with the SHA-256 of a medium when its last owner is gone: its states are to be deleted.
    """

    def __init__(self, settings: Settings, forget: Callable[[str], None] = lambda content: None):
        self._settings, self._forget = settings, forget

    async def start(self) -> None:
        raise NotImplementedError

    async def store(self, chunks: AsyncIterator[bytes], name: str, owner: str, length: int | None = None) -> Stored:
        raise NotImplementedError

    async def keep(self, url: str, owner: str) -> Stored:
        raise NotImplementedError

    async def fetch(self, url: str, kind: Kind, owner: str) -> Medium:
        raise NotImplementedError

    def release(self, medium: Medium) -> None:
        raise NotImplementedError

    def find(self, id: str, owner: str) -> Stored:
        raise NotImplementedError

    def list(self, owner: str) -> list[Stored]:
        raise NotImplementedError

    async def delete(self, id: str, owner: str) -> None:
        raise NotImplementedError

    async def end(self, owner: str) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    def status(self) -> dict[str, float]:
        raise NotImplementedError

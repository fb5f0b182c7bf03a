"""Helpers for tests of the server's library."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from ma2mba.serving.library import MediaLibrary
from ma2mba.serving.settings import Settings
from tests.unit.video.numbered_video import write

T = TypeVar("T")


def clip(path: Path, seconds: int = 3) -> bytes:
    """Write a video with one frame a second, and return its bytes."""
    write(path, range(seconds), Fraction(1))
    return path.read_bytes()


def photo(path: Path, colour: str = "red") -> bytes:
    Image.new("RGB", (32, 24), colour).save(path)
    return path.read_bytes()


def settings(folder: Path, **options: Any) -> Settings:
    return Settings(folder / "model", cache=folder / "cache", **options)


async def sent(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def data_url(content: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def with_library(
    chosen: Settings, use: Callable[[MediaLibrary], Awaitable[T]], forget: Callable[[str], None] = lambda content: None
) -> T:
    """Run `use` with a library that has started, and close the library."""

    async def work() -> T:
        library = MediaLibrary(chosen, forget)
        await library.start()
        try:
            return await use(library)
        finally:
            await library.close()

    return run(work())


def run(work: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(work, 300)

    return asyncio.run(bounded())


def files(folder: Path) -> list[str]:
    """Return the names of all files of the uploads, without the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def kinds(names: Iterable[str]) -> list[str]:
    return sorted(Path(name).suffix for name in names)

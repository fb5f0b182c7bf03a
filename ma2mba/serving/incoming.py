"""Write a medium to disk while it comes: hashed, counted, and never larger than allowed."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ma2mba.serving.errors import Refused
from ma2mba.serving.room import GB, LEAST_BYTES, Room

BLOCK_BYTES = 1 << 20
BLOCK_SECONDS = 120.0
"""Seconds in which a block must come: a client that drips does not keep its turn for ever."""


@dataclass(frozen=True)
class Written:
    """A file that was written: its bytes, their SHA-256, and the bytes that its owner's quota is charged."""

    bytes: int
    content: str
    charged: int


def charge(bytes: int) -> int:
    """Return what a medium costs its owner's quota."""
    return max(bytes, LEAST_BYTES)


class Incoming:
    """Writes media. `most`: bytes of the largest one."""

    def __init__(self, room: Room, most: int, executor: Executor):
        self._room, self._most, self._executor = room, most, executor

    async def write(
        self, part: Path, chunks: AsyncIterator[bytes], name: str, owner: str, length: int | None
    ) -> Written:
        """Write chunks to `part`. Raise Refused: then nothing is charged. The caller deletes the file.

        `length`: how many bytes are announced; None: unknown. More bytes may come, and are counted.
        """
        self.check_size(length or 0, name)
        charged = charge(length or 0)
        self._room.take(owner, charged)
        digest, size, loop = hashlib.sha256(), 0, asyncio.get_running_loop()
        try:
            with open(part, "xb", opener=_private) as file:
                async for block in _blocks(chunks, name):
                    size += len(block)
                    self.check_size(size, name)
                    if size > charged:
                        self._room.take(owner, size - charged)
                        charged = size
                    await loop.run_in_executor(self._executor, _put, file, digest, block)
            if not size:
                raise Refused(f"{name}: empty. Send a video or a picture", 400, "empty_media")
        except OSError as error:
            self._room.give_back(owner, charged)
            raise Refused(f"{name}: cannot be stored ({error.strerror}). Try again later", 503, "no_space") from error
        except BaseException:
            self._room.give_back(owner, charged)
            raise
        self._room.give_back(owner, charged - charge(size))
        return Written(size, digest.hexdigest(), charge(size))

    def check_size(self, bytes: int, name: str) -> None:
        """Raise Refused if a medium of so many bytes is too large."""
        if bytes > self._most:
            reason = f"larger than {self._most / GB:g} GB. Send a smaller file, or cut the video into parts"
            raise Refused(f"{name}: {reason}", 413, "media_too_large")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _put(file: BinaryIO, digest: "hashlib._Hash", block: bytes) -> None:
    file.write(block)
    digest.update(block)


async def _blocks(chunks: AsyncIterator[bytes], name: str) -> AsyncIterator[bytes]:
    """Join chunks to blocks of about BLOCK_BYTES. Raise Refused if one takes longer than BLOCK_SECONDS."""
    more = True
    while more:
        block = bytearray()
        try:
            async with asyncio.timeout(BLOCK_SECONDS):
                while more and len(block) < BLOCK_BYTES:
                    chunk = await anext(chunks, None)
                    block += chunk or b""
                    more = chunk is not None
        except TimeoutError:
            reason = f"less than 1 MiB came within {BLOCK_SECONDS:g} s. Send it again over a faster connection"
            raise Refused(f"{name}: {reason}", 408, "timeout") from None
        if block:
            yield bytes(block)

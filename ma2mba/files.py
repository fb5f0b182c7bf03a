"""Files that last: written whole or not at all, and checked by hash."""

import errno
import hashlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from ma2mba.errors import UserError

BLOCK = 1 << 20


def sha256_file(path: Path | str, beat: Callable[[], None] = lambda: None) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits; `beat` is called at each MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            beat()
    return digest.hexdigest()


def xxh3_file(path: Path | str) -> str:
    """XXH3-128 of a file's bytes, as 32 hexadecimal digits."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path` that no other process uses, on this machine or another."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


@contextmanager
def atomic_path(path: Path | str, *, sync: bool = True) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success fsync it and rename it to `path`, on failure remove it.

    Without `sync` a power cut may lose it (for files that are cheap to make again), but it is never half-written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        if sync:
            fsync(temporary)
        os.replace(temporary, path)
        if sync:
            fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path | str, mode: str = "w") -> Iterator:
    """Open a file ("w" text in UTF-8, "wb" bytes) that appears at `path` only when the block ends well."""
    with atomic_path(path) as temporary, open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file


def write_checked(path: Path, content: bytes) -> str:
    """Write bytes, sync them and read them back; returns their XXH3-128. Raises OSError when others come back."""
    with open(path, "wb") as file:
        file.write(content)
    fsync(path)
    wanted = xxhash.xxh3_128(content).hexdigest()
    if xxh3_file(path) != wanted:
        raise OSError(errno.EIO, "other bytes are read than were written", str(path))
    return wanted


def fsync(path: Path | str) -> None:
    """Make a file's or a folder's content survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(folder: Path | str) -> Iterator[Path]:
    """Give a temporary folder beside `folder`; on success fsync its files and rename it to `folder`, else remove it."""
    folder = Path(folder)
    temporary = temporary_name(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.rglob("*"):
            fsync(path)
        os.rename(temporary, folder)
        fsync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the system's refusal to read a file into a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable or name another") from error


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the system's refusal to write, a full disk for one, into a UserError that names folder and cause."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error}); make room or name another --out, then run the command again"
        ) from error

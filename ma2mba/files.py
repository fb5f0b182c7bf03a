"""Write files atomically, compute their checksums, and turn file-system errors into messages for the user."""

import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from ma2mba.errors import UserError

BLOCK_BYTES = 1 << 20


def sha256_file(path: Path | str, beat: Callable[[], None] = lambda: None) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits. Call `beat` after every MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            beat()
    return digest.hexdigest()


def xxh3_file(path: Path | str) -> str:
    """Return the XXH3-128 of a file's bytes as 32 hexadecimal digits."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def temporary_name(path: Path) -> Path:
    """Return a hidden path in the same folder as `path` that no other process on any machine uses."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


@contextmanager
def atomic_path(path: Path | str, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to. On success, fsync that file and rename it to `path`; on failure, remove it.

    With `sync=False` a power failure may lose the file, but never leaves it half-written. Use `sync=False` for files
    that are cheap to rebuild.
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
    """Open a file for writing ("w": UTF-8 text, "wb": bytes). It appears at `path` only if the block succeeds."""
    with atomic_path(path) as temporary, open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file


def write_checked(path: Path, content: bytes) -> str:
    """Write and fsync `content`, read it back, and return its XXH3-128. Raise OSError if the bytes read back differ."""
    with open(path, "wb") as file:
        file.write(content)
    fsync(path)
    expected = xxhash.xxh3_128(content).hexdigest()
    if xxh3_file(path) != expected:
        raise OSError(errno.EIO, "the bytes read back differ from the bytes written", str(path))
    return expected


def fsync(path: Path | str) -> None:
    """Flush a file or folder to disk, so that its content survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(folder: Path | str) -> Iterator[Path]:
    """Yield a temporary folder. On success, fsync its files and rename it to `folder`; on failure, remove it."""
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
    """Turn an OSError raised while the block reads `path` into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Make it readable or name another file") from error


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn an OSError raised while the block writes below `folder`, such as a full disk, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error}). Free disk space or name another --out, then run the command again"
        ) from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file, or [] if the file does not exist.

    Reading stops at the first line that is not JSON: a crash may cut off the last line.
    """
    records: list[dict[str, Any]] = []
    if not path.is_file():
        return records
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def fits_utf8(text: str) -> bool:
    r"""Return False if UTF-8 cannot encode `text`: JSON may hold half a surrogate pair ("\ud83d" alone)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

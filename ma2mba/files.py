"""Write files atomically, compute their checksums, keep names from others inside their folder, and turn file-system
errors into messages for the user.
"""

import errno
import hashlib
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import xxhash

from ma2mba.errors import UserError
from ma2mba.strings import fits_utf8

BLOCK_BYTES = 1 << 20
LONGEST_PREFIX = 150
"""Bytes of a name that a temporary name repeats: a file name may have 255, and a host's name 64."""
PATH_LETTERS = 4096
"""Letters of the longest accepted name: Linux opens no longer path."""


def sha256_file(path: Path | str, beat: Callable[[], None] = lambda: None) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits. Call `beat` after every MiB.

    Raise OSError if it is not a regular file: /dev/zero never ends.
    """
    digest = hashlib.sha256()
    with _open(path) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            beat()
    return digest.hexdigest()


def xxh3_file(path: Path | str) -> str:
    """Return the XXH3-128 of a file's bytes as 32 hexadecimal digits. Raise OSError if it is not a regular file."""
    digest = xxhash.xxh3_128()
    with _open(path) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _open(path: Path | str) -> BinaryIO:
    """Open a regular file for reading, without waiting for the writer of a FIFO. Raise OSError for anything else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(descriptor, "rb")


def temporary_name(path: Path) -> Path:
    """Return a hidden path in the same folder as `path` that no other process on any machine uses."""
    name = os.fsencode(path.name)
    short = path.name if len(name) <= LONGEST_PREFIX else xxhash.xxh3_128_hexdigest(name)
    return path.with_name(f".{short}.{socket.gethostname()}.{os.getpid()}.tmp")


class OutsideFolder(UserError):
    """A name that a file gives does not stay inside its folder. `reason` says why in a few words."""

    def __init__(self, listed_in: object, name: str, reason: str):
        super().__init__(f"{listed_in}: the entry {name!r} {reason}. Correct the entry, or get the folder again")
        self.reason = reason


def name_problem(name: str) -> str:
    """Return why `name` cannot name a file inside a folder; "" if it can. Looks at the name only, not at the disk."""
    if not name:
        return "is an empty name"
    if len(name) > PATH_LETTERS:
        return f"is longer than {PATH_LETTERS:,} letters"
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in name):
        return "contains control characters"
    if not fits_utf8(name):
        return "is not valid Unicode"
    if os.path.isabs(name):
        return "is an absolute path"
    return "leads out of its folder" if os.path.normpath(name).split(os.sep)[0] == ".." else ""


def inside(folder: Path, name: str, listed_in: object) -> Path:
    """Return the path of the entry `name` of `folder`. The file need not exist.

    `listed_in` is the file that gives the name, for the message. Use this for every name that a file gives, and for
    fixed names in a folder that somebody else made. Raise OutsideFolder for an absolute path, for ".." or a symbolic
    link that leads out of the folder, and for control characters.

    In the cache of the Hugging Face hub, `snapshots/COMMIT` consists of links to `blobs` beside `snapshots`: they are
    inside.
    """
    problem = name_problem(name)
    if not problem:
        root, path = Path(os.path.realpath(folder)), Path(os.path.realpath(folder / name))
        snapshots = [place.parent for place in (root, *root.parents) if place.parent.name == "snapshots"]
        allowed = (root, *(place.with_name("blobs") for place in snapshots))
        if not any(path.is_relative_to(place) for place in allowed):
            problem = "is a symbolic link that leads out of its folder"
    if problem:
        raise OutsideFolder(listed_in, name, problem)
    return folder / name


@contextmanager
def open_regular(path: Path | str) -> Iterator[BinaryIO]:
    """Open a regular file for reading. Raise UserError if it is missing, unreadable, a folder, a FIFO or a device."""
    try:
        opened = _open(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    with opened as file:
        try:
            yield file
        except OSError as error:
            raise _unreadable(path, error) from error


def _unreadable(path: Path | str, error: OSError | ValueError) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(f"{path}: cannot be read ({reason}). Make it readable, or give another path")


def read_bounded(path: Path | str, most: int) -> bytes:
    """Return the bytes of a file. Raise UserError if `open_regular` does, or if it is larger than `most` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        expected = min(most, max(size, BLOCK_BYTES))  # Python takes memory for all bytes that it is asked to read
        content = file.read(expected + 1) if size <= most else b""
    if max(size, len(content)) > expected:
        raise UserError(f"{path}: larger than {most:,} bytes. Give a file of this kind that is smaller")
    return content


@contextmanager
def atomic_path(path: Path | str, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to. On success, fsync that file and rename it to `path`; on failure, remove it.

    The file gets the permissions that the umask allows, whichever library writes it. Raise UserError if `path` is a
    symbolic link: it is neither replaced nor followed. With `sync=False` a power failure may lose the file, but never
    leaves it half-written. Use `sync=False` for files that are cheap to rebuild.
    """
    path = Path(path)
    refuse_link(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        temporary.unlink(missing_ok=True)
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)
        if sync:
            fsync(temporary)
        os.replace(temporary, path)
        if sync:
            fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_link(path: Path) -> None:
    """Raise UserError if `path` is a symbolic link."""
    if path.is_symlink():
        raise UserError(f"{path}: a symbolic link, which is neither replaced nor followed. Name the file it points to")


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
    require_written(path, expected)
    return expected


def require_written(path: Path, xxh3: str) -> None:
    """Read a file back. Raise OSError if its XXH3-128 is not the hash of what was written."""
    if xxh3_file(path) != xxh3:
        raise OSError(errno.EIO, "the bytes read back differ from the bytes written", str(path))


def fsync(path: Path | str) -> None:
    """Flush a file or folder to disk, so that its content survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_all(paths: Iterable[Path]) -> None:
    """Flush files and folders to disk, several at a time: the disk then waits once for many."""
    with ThreadPoolExecutor(16) as threads:
        for _ in threads.map(fsync, paths):
            pass


@contextmanager
def atomic_folder(folder: Path | str) -> Iterator[Path]:
    """Yield a temporary folder. On success, fsync its files and rename it to `folder`; on failure, remove it.

    The files get the permissions that the umask allows, whichever library writes them. Raise UserError if `folder` is a
    symbolic link: it is neither replaced nor followed.
    """
    folder = Path(folder)
    refuse_link(folder)
    temporary = temporary_name(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        mode = stat.S_IMODE(temporary.stat().st_mode) & 0o666
        yield temporary
        paths = list(temporary.rglob("*"))
        for path in paths:
            if path.is_file():
                path.chmod(mode)
        fsync_all(paths)
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

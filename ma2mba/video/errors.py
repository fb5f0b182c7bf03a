"""The errors for a video or an image that cannot be used, and the limits of what reading one may cost."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ma2mba.errors import UserError
from ma2mba.limits import limits, raise_limit
from ma2mba.memory import at_most


class MediaError(UserError):
    """A video or image cannot be used: `path` names the file, `reason` says why in a few words, `remedy` what to do.

    `partial`: how many seconds of a video that breaks half way can be read; None if no frame can be read.
    """

    def __init__(
        self,
        path: object,
        reason: str,
        remedy: str = "Use a complete, readable file",
        partial: float | None = None,
    ):
        super().__init__(f"{path}: {reason}. {remedy}")
        self.path, self.reason, self.remedy, self.partial = str(path), reason, remedy, partial

    def __reduce__(self):
        return type(self), (self.path, self.reason, self.remedy, self.partial)


class OverMemory(MediaError, MemoryError):
    """Reading a video or image takes more memory than limits() allows."""


def file_size(path: Path) -> int:
    """Return the size of a media file in bytes. Raise MediaError if it is not a regular file or cannot be accessed."""
    status = _status(path)
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(path, "not a regular file")
    return status.st_size


def folder_size(path: Path) -> int:
    """Return the size of a folder's list of names. Raise MediaError if it is not a folder or cannot be accessed."""
    status = _status(path)
    if not stat.S_ISDIR(status.st_mode):
        raise MediaError(path, "not a folder of pictures", "Give the folder of the video's pictures")
    return status.st_size


def file_state(path: Path, *, folder: bool = False) -> tuple[int, ...]:
    """Return what changes when somebody writes or replaces a media file, or a folder of pictures.

    Raise MediaError if it is not a regular file, or not a folder.
    """
    size, status = folder_size(path) if folder else file_size(path), path.stat()
    return size, status.st_mtime_ns, status.st_ino


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise MediaError(path, "no such file") from error
    except OSError as error:
        raise MediaError(path, f"cannot be opened ({error.strerror})") from error


@contextmanager
def reading_memory(path: Path, pixels_bytes: int = 0, held: int | None = None) -> Iterator[None]:
    """Let the block take limits().reading_mb, and `pixels_bytes` for pictures. Raise OverMemory if it needs more.

    `held`: what `held_bytes` has returned shortly before, for a block that runs often.
    """
    allowed = limits().reading_mb + pixels_bytes / 1e6
    with at_most(int(allowed * 1e6), held) as lowest:
        try:
            yield
        except OverMemory:
            raise
        except Exception as error:
            lacking = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
            if not lowest or not lacking:
                raise
            reason = f"reading it takes more than {allowed:,.0f} MB of memory"
            raise OverMemory(path, reason, raise_limit("reading_mb")) from error


def check_picture_size(path: Path, width: int, height: int) -> None:
    """Raise MediaError if a picture of this size has more pixels, or is thinner, than limits() allows."""
    most = limits()
    if width * height > most.megapixels * 1e6:
        reason = f"{width:,} x {height:,} pixels are more than {most.megapixels:g} megapixels"
        raise MediaError(path, reason, raise_limit("megapixels"))
    if max(width, height) > most.aspect * max(1, min(width, height)):
        reason = f"of {width:,} x {height:,} pixels, one side is more than {most.aspect:g} times longer than the other"
        raise MediaError(path, reason, raise_limit("aspect"))

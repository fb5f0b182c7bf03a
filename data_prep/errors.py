"""What can be wrong with a video, an image, an annotation file or the folder that is written."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ma2mba.errors import UserError


class MediaError(UserError):
    """Media that cannot be used. `path` names it, `reason` says why in a few words."""

    def __init__(self, path: object, reason: str):
        super().__init__(f"{path}: {reason}; give a whole, readable file")
        self.path, self.reason = str(path), reason

    def __reduce__(self):
        return MediaError, (self.path, self.reason)


def file_size(path: Path) -> int:
    """Bytes of a medium. Raises MediaError when there is no regular file that can be looked at."""
    try:
        facts = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise MediaError(path, "no such file") from error
    except OSError as error:
        raise MediaError(path, f"cannot be opened ({error.strerror})") from error
    if not stat.S_ISREG(facts.st_mode):
        raise MediaError(path, "not a regular file")
    return facts.st_size


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

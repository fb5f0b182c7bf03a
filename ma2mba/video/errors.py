"""The error for a video or an image that cannot be used."""

import stat
from pathlib import Path

from ma2mba.errors import UserError


class MediaError(UserError):
    """A video or image cannot be used: `path` names the file, `reason` says why in a few words."""

    def __init__(self, path: object, reason: str):
        super().__init__(f"{path}: {reason}. Use a complete, readable file")
        self.path, self.reason = str(path), reason

    def __reduce__(self):
        return MediaError, (self.path, self.reason)


def file_size(path: Path) -> int:
    """Return the size of a media file in bytes. Raise MediaError if it is not a regular file or cannot be accessed."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise MediaError(path, "no such file") from error
    except OSError as error:
        raise MediaError(path, f"cannot be opened ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(path, "not a regular file")
    return status.st_size

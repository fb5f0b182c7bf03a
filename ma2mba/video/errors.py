"""What can be wrong with a video or an image."""

import stat
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

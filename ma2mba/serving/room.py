"""Counts the bytes that owners keep: nobody fills the disk, or takes the share of the others."""

import logging
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ma2mba.serving.errors import Refused

log = logging.getLogger(__name__)
GB = 10**9
FREE_BYTES = 10**9
"""Bytes of the disk that uploads leave free."""
LOOK_EVERY = 64 << 20
"""Bytes after which the disk is looked at again."""
LEAST_BYTES = 4 << 20
"""What a medium counts at least: so its number is bounded too."""
FULL_SECONDS = 60.0
"""After how many seconds a client may try again when the server has no room."""


class Room:
    """Bytes of each owner, and of all. `make_room(owner, bytes)` deletes what may be deleted: None: of any owner."""

    def __init__(self, folder: Path, each: int, total: int, make_room: Callable[[str | None, int], None]):
        self._folder, self._each, self._total, self._make_room = folder, each, total, make_room
        self._by_owner: Counter[str] = Counter()
        self._until_look = 0
        self._full = False

    def take(self, owner: str, bytes: int) -> None:
        """Count bytes that are to be written. Raise Refused, and count nothing, if there is no room for them."""
        if (lacking := self._by_owner[owner] + bytes - self._each) > 0:
            self._make_room(owner, lacking)
        if self._by_owner[owner] + bytes > self._each:
            reason = f"you keep more than {self._each / GB:g} GB on this server. Delete videos that you no longer need"
            raise Refused(reason, 429, "quota_exceeded")
        if (lacking := self.bytes + bytes - self._total) > 0:
            self._make_room(None, lacking)
        if self.bytes + bytes > self._total or self._disk_is_full(bytes):
            raise Refused("this server has no room for more media. Try again later", 503, "no_space", "", FULL_SECONDS)
        self.count(owner, bytes)

    def count(self, owner: str, bytes: int) -> None:
        """Count bytes that are on the disk already."""
        self._by_owner[owner] += bytes

    def give_back(self, owner: str, bytes: int) -> None:
        self._by_owner[owner] -= bytes
        if not self._by_owner[owner]:
            del self._by_owner[owner]

    @property
    def bytes(self) -> int:
        """Bytes of all owners."""
        return self._by_owner.total()

    def _disk_is_full(self, bytes: int) -> bool:
        self._until_look -= bytes
        if self._until_look > 0:
            return False
        told, self._full = self._full, shutil.disk_usage(self._folder).free < bytes + FREE_BYTES + LOOK_EVERY
        if not self._full:
            self._until_look = LOOK_EVERY
        elif not told:
            log.warning("%s: the disk is full: %g GB must stay free. Media are refused", self._folder, FREE_BYTES / GB)
        return self._full

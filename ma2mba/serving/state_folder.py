"""The folder of the server's state files. Several servers may share it: files appear as a whole, and may be deleted."""

import contextlib
import hashlib
import os
import time
from pathlib import Path

from ma2mba import __version__
from ma2mba.serving.prompt import Prefix
from ma2mba.video.decode import decoder_version

PART = 16
"""Letters of a content's hash in a name."""
LEFT_OVER = 3600.0
"""Seconds after which a file that was not written to its end counts as left over."""


class StateFolder:
    """State files, named by what decides their bits and by the contents of their media."""

    def __init__(self, path: Path, chunk_tokens: int):
        """Create the folder, readable by this user alone, and delete what a killed server left. Raise OSError."""
        self._path, self._chunk_tokens = path, chunk_tokens
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in path.glob(".*.tmp"):
            if time.time() - left.stat().st_mtime > LEFT_OVER:
                left.unlink(missing_ok=True)

    def path(self, fingerprint: str, prefix: Prefix) -> Path:
        """Return the file of a state. A model's fingerprint, the chunks and the versions decide its bits."""
        decided_by = (fingerprint, self._chunk_tokens, prefix.key, __version__, decoder_version("pyav"))
        key = hashlib.sha256(repr(decided_by).encode()).hexdigest()[:32]
        return self._path / f"{'-'.join([key, *(content[:PART] for content in prefix.contents)])}.state"

    def holds(self, fingerprint: str, prefix: Prefix) -> bool:
        return self.path(fingerprint, prefix).is_file()

    def used(self, path: Path) -> None:
        """Note that a file was used now: the files used least recently are deleted first."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)

    def make_room(self, size: int, budget: int) -> bool:
        """Delete the files used least recently until one more fits the budget. Return False if it cannot."""
        if size > budget:
            return False
        files = sorted(self._files(), key=lambda file: file[2])
        total = sum(held for _, held, _ in files)
        for path, held, _ in files:
            if total + size <= budget:
                break
            path.unlink(missing_ok=True)
            total -= held
        return True

    def forget(self, content: str) -> None:
        """Delete the states that a medium is part of."""
        for path, _, _ in self._files():
            if content[:PART] in path.stem.split("-")[1:]:
                path.unlink(missing_ok=True)

    def size(self) -> tuple[int, int]:
        """Return how many states there are, and their bytes."""
        files = self._files()
        return len(files), sum(size for _, size, _ in files)

    def _files(self) -> list[tuple[Path, int, float]]:
        """Return path, bytes and time of last use of each state."""
        found = []
        for entry in os.scandir(self._path):
            if entry.name.endswith(".state") and not entry.name.startswith("."):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # another server has deleted it
                    continue
                found.append((Path(entry.path), status.st_size, status.st_mtime))
        return found

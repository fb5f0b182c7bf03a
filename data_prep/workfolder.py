"""Guard the output folder of a build: which recipe it belongs to, who may write now, and what killed builds left."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from data_prep.recipe import differences
from data_prep.shard import WORK_FOLDER
from ma2mba.errors import UserError
from ma2mba.files import atomic_write
from ma2mba.shards.format import MANIFEST_FILE, PAYLOAD_FOLDER
from ma2mba.shards.manifest import read_manifest

RECIPE_FILE = "recipe.json"
PATIENCE = 60.0
"""Seconds that a build of one share waits for a build that has locked the whole folder."""

ATTEMPTS = 100
"""Attempts to lock the work folder: a build that finishes at the same moment removes it."""


class Busy(UserError):
    """Another build writes to the folder."""


def check_folder(out: Path, resolved: dict[str, Any]) -> bool:
    """Return True if `out` holds this build, finished, and remove its work folder. Raise UserError as `is_finished`."""
    finished = is_finished(out, resolved)
    if finished:
        shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    return finished


def is_finished(out: Path, resolved: dict[str, Any]) -> bool:
    """Return True if `out` holds this build, finished. Raise UserError if it holds anything else."""
    if not out.exists():
        return False
    found = _recipe_in(out)
    if found is None:
        if out.is_dir() and not any(path.name != WORK_FOLDER for path in out.iterdir()):
            return False
        raise UserError(f"{out}: holds other files and no shards. Choose a new folder")
    if changes := differences(found, resolved):
        listed = "\n".join(f"  {line}" for line in changes)
        raise UserError(f"{out}: was built by another recipe. Choose a new folder. Differences:\n{listed}")
    return (out / MANIFEST_FILE).exists()


def _recipe_in(out: Path) -> dict[str, Any] | None:
    """Return the resolved recipe of the build in `out`, finished or not; None if there is no build.

    Look twice: another process may finish the build between the two files, and remove the work folder.
    """
    for _ in range(2):
        if (out / MANIFEST_FILE).exists():
            return read_manifest(out).recipe
        with suppress(FileNotFoundError, NotADirectoryError):
            return json.loads((out / WORK_FOLDER / RECIPE_FILE).read_bytes())
    return None


@contextmanager
def claim(out: Path, resolved: dict[str, Any], *, shared: bool = False) -> Iterator[None]:
    """Lock `out` for this process, or with `shared` for all processes that build shares of the same folder.

    Raise Busy if another build holds the lock; with `shared`, wait up to PATIENCE seconds first.
    """
    work = out / WORK_FOLDER
    with _locked(work, out, shared):
        if not (out / MANIFEST_FILE).exists() and not (work / RECIPE_FILE).exists():
            with atomic_write(work / RECIPE_FILE) as file:
                json.dump(resolved, file)
        yield


def _locked(work: Path, out: Path, shared: bool) -> TextIO:
    """Return the lock file, open and locked.

    A build that finishes at the same moment removes the file. The lock on the removed file would then not keep other
    processes out, so lock the new file instead.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            work.mkdir(parents=True, exist_ok=True)
            lock = open(work / "lock", "w")  # noqa: SIM115 (closed by the caller)
        except (FileNotFoundError, FileExistsError):
            if attempt == ATTEMPTS:
                raise
            continue
        try:
            _lock(lock.fileno(), out, shared)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), os.stat(work / "lock")):
                    return lock
        except BaseException:
            lock.close()
            raise
        lock.close()
    raise Busy(f"{out}: other builds kept starting and finishing here. Wait for them, then run the same command again")


def _lock(descriptor: int, out: Path, shared: bool) -> None:
    """Lock an open file. Raise Busy if another process holds the lock."""
    begun = time.monotonic()
    while True:
        try:
            return fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            if not shared or time.monotonic() - begun > PATIENCE:
                raise Busy(f"{out}: another build is writing here. Wait for it or choose a new folder") from None
            time.sleep(0.2)


def remove_leftovers(out: Path) -> None:
    """Remove the temporary files of killed builds. Call it only while `out` is locked for this process alone."""
    for folder in (out, out / PAYLOAD_FOLDER):
        for stale in folder.glob(".*.tmp"):
            os.unlink(stale)

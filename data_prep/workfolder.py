"""Guard the output folder of a build: which recipe it belongs to, who may write now, and what killed builds left."""

import errno
import fcntl
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.clips import Reject, parse_reject
from data_prep.parts import recorded
from data_prep.recipe import differences
from data_prep.shard import WORK_FOLDER
from ma2mba.errors import UserError
from ma2mba.files import atomic_write, inside, read_bounded, refuse_link
from ma2mba.shards.format import MANIFEST_FILE, PAYLOAD_FOLDER, REJECTS_FILE, REPORT_FILE
from ma2mba.shards.manifest import read_manifest, shallow
from ma2mba.text import parse_json, read_json

RECIPE_FILE = "recipe.json"
REJECTS_BYTES = 1 << 28
"""Bytes of the largest rejects.jsonl that is shown."""
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


def samples_per_shard_in(out: Path) -> int | None:
    """Return how many samples a shard of the build in `out` holds; None if there is no build."""
    return recorded(_recipe_in(out) or {})


def _recipe_in(out: Path) -> dict[str, Any] | None:
    """Return the resolved recipe of the build in `out`, finished or not; None if there is no build.

    Look twice: another process may finish the build between the two files, and remove the work folder.
    """
    for _ in range(2):
        if (out / MANIFEST_FILE).exists():
            return read_manifest(out).recipe
        path = inside(out, f"{WORK_FOLDER}/{RECIPE_FILE}", out)
        if os.path.lexists(path):
            try:
                recipe = read_json(path)
            except UserError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    continue
                raise
            if not isinstance(recipe, dict) or not shallow(recipe):
                raise UserError(f"{path}: not a recipe of a build. Remove {path.parent} or choose a new folder")
            return recipe
    return None


def read_report(folder: Path) -> dict[str, Any]:
    """Return the report of a finished build. Raise UserError if it is not a report."""
    path = inside(folder, REPORT_FILE, folder)
    report = read_json(path)
    try:
        json.dumps(report, allow_nan=False)
        tables = [*report.get("by_dataset", {}).values()]
        counted = all(isinstance(count, int) for table in tables for count in table.values())
        sound = counted and all(table.keys() == tables[0].keys() for table in tables)
    except (ValueError, RecursionError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f"{path}: not the report of a build. Run `ma2mba data audit {folder} --repair`")
    return dict(report)


def read_rejects(folder: Path) -> list[Reject]:
    """Return the rejects of a finished build. Raise UserError if the file holds something else."""
    path = inside(folder, REJECTS_FILE, folder)
    try:
        return [parse_reject(parse_json(line)) for line in read_bounded(path, REJECTS_BYTES).splitlines()]
    except ValueError as error:
        remedy = f"Run `ma2mba data audit {folder} --repair`"
        raise UserError(f"{path}: not the rejects of a build ({error}). {remedy}") from error


@contextmanager
def claim(out: Path, resolved: dict[str, Any], *, shared: bool = False) -> Iterator[None]:
    """Lock `out` for this process, or with `shared` for all processes that build shares of the same folder.

    Raise Busy if another build holds the lock; with `shared`, wait up to PATIENCE seconds first.
    """
    work = out / WORK_FOLDER
    for folder in (work, out / PAYLOAD_FOLDER):
        refuse_link(folder)
    with _locked(work, out, shared):
        if not (out / MANIFEST_FILE).exists() and not (work / RECIPE_FILE).exists():
            with atomic_write(work / RECIPE_FILE) as file:
                json.dump(resolved, file)
        yield


def _locked(work: Path, out: Path, shared: bool) -> BinaryIO:
    """Return the lock file, open and locked.

    A build that finishes at the same moment removes the file. The lock on the removed file would then not keep other
    processes out, so lock the new file instead.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            work.mkdir(parents=True, exist_ok=True)
            lock = _open_lock(work / "lock")
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


def _open_lock(path: Path) -> BinaryIO:
    """Open a lock file, and create it if it is missing. Raise UserError if it is a link, a FIFO or a device."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
    else:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
    raise UserError(f"{path}: not a regular file. Remove it, or choose a new folder")


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

"""The folder that a build writes: whose it is, who may write there now, and what killed writers left behind."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from data_prep.parts import WORK_FOLDER
from data_prep.recipe import differences
from ma2mba.errors import UserError
from ma2mba.files import atomic_write
from ma2mba.shards.format import MANIFEST_FILE, PAYLOAD_FOLDER
from ma2mba.shards.manifest import read_manifest

RECIPE_FILE = "recipe.json"
PATIENCE = 60.0
"""Seconds that one of several builders waits for another that holds the folder alone."""

ATTEMPTS = 100
"""Times that the work folder may be removed by others who finish just then."""


class Busy(UserError):
    """Somebody else writes in the folder."""


def check_folder(out: Path, resolved: dict[str, Any]) -> bool:
    """Whether `out` is this build, finished. Raises UserError when it holds anything else."""
    if not out.exists():
        return False
    found = _recipe_in(out)
    if found is None:
        if out.is_dir() and not any(path.name != WORK_FOLDER for path in out.iterdir()):
            return False
        raise UserError(f"{out}: holds other files and no shards; name a new folder")
    if changes := differences(found, resolved):
        listed = "\n".join(f"  {line}" for line in changes)
        raise UserError(f"{out}: was built by another recipe; name a new folder. What differs:\n{listed}")
    if not (out / MANIFEST_FILE).exists():
        return False
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    return True


def _recipe_in(out: Path) -> dict[str, Any] | None:
    """What a build was or is made from. Another process may finish it meanwhile, and take its work folder away."""
    for _ in range(2):
        if (out / MANIFEST_FILE).exists():
            return read_manifest(out).recipe
        with suppress(FileNotFoundError, NotADirectoryError):
            return json.loads((out / WORK_FOLDER / RECIPE_FILE).read_bytes())
    return None


@contextmanager
def claim(out: Path, resolved: dict[str, Any], *, shared: bool = False) -> Iterator[None]:
    """Hold `out` for this process alone, or with others that build other parts (`shared`).

    Raises Busy while another build holds it; one that shares waits PATIENCE seconds first.
    """
    work = out / WORK_FOLDER
    with _locked(work, out, shared):
        if not (out / MANIFEST_FILE).exists() and not (work / RECIPE_FILE).exists():
            with atomic_write(work / RECIPE_FILE) as file:
                json.dump(resolved, file)
        yield


def _locked(work: Path, out: Path, shared: bool) -> TextIO:
    """The lock file, open and held: the one that others find there, not one that was removed with a finished build."""
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
    raise Busy(f"{out}: other builds begin and end here all the time; run the same command again")


def _lock(descriptor: int, out: Path, shared: bool) -> None:
    begun = time.monotonic()
    while True:
        try:
            return fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            if not shared or time.monotonic() - begun > PATIENCE:
                raise Busy(f"{out}: another build is writing here; wait for it or name a new folder") from None
            time.sleep(0.2)


def remove_leftovers(out: Path) -> None:
    """Remove the temporary files of writers that were killed. Only while `out` is held alone."""
    for folder in (out, out / PAYLOAD_FOLDER):
        for stale in folder.glob(".*.tmp"):
            os.unlink(stale)

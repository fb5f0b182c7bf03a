"""The folder that a build writes: whose it is, who may write there now, and what killed writers left behind."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.parts import WORK_FOLDER
from data_prep.recipe import differences
from ma2mba.errors import UserError
from ma2mba.shards.format import MANIFEST_FILE, PAYLOAD_FOLDER
from ma2mba.shards.integrity import atomic_write
from ma2mba.shards.manifest import read_manifest

RECIPE_FILE = "recipe.json"
PATIENCE = 60.0
"""Seconds that one of several builders waits for another that holds the folder alone."""


class Busy(UserError):
    """Somebody else writes in the folder."""


def check_folder(out: Path, resolved: dict[str, Any]) -> bool:
    """Whether `out` is this build, finished. Raises UserError when it holds anything else."""
    if not out.exists():
        return False
    started = out / WORK_FOLDER / RECIPE_FILE
    if (out / MANIFEST_FILE).exists():
        found: dict[str, Any] = read_manifest(out).recipe
    elif started.exists():
        found = json.loads(started.read_bytes())
    elif out.is_dir() and not any(path.name != WORK_FOLDER for path in out.iterdir()):
        return False
    else:
        raise UserError(f"{out}: holds other files and no shards; name a new folder")
    if changes := differences(found, resolved):
        listed = "\n".join(f"  {line}" for line in changes)
        raise UserError(f"{out}: was built by another recipe; name a new folder. What differs:\n{listed}")
    if not (out / MANIFEST_FILE).exists():
        return False
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    return True


@contextmanager
def claim(out: Path, resolved: dict[str, Any], *, shared: bool = False) -> Iterator[None]:
    """Hold `out` for this process alone, or with others that build other parts (`shared`).

    Raises Busy while another build holds it; one that shares waits PATIENCE seconds first.
    """
    work = out / WORK_FOLDER
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        _lock(lock.fileno(), out, shared)
        if not (out / MANIFEST_FILE).exists() and not (work / RECIPE_FILE).exists():
            with atomic_write(work / RECIPE_FILE) as file:
                json.dump(resolved, file)
        yield


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

"""The first rank that fails is heard first, and all others end at once: RUN/failures, RUN/stuck.

Whoever creates RUN/failures/first.json has failed first and tells its story; a rank that fails later, most often of a
broken collective, says one line. Every rank keeps its own traceback in RUN/failures/rank-N.txt.
"""

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from ma2mba.errors import UserError
from ma2mba.files import atomic_write
from ma2mba.training.faults.activity import Activity, in_words
from ma2mba.training.faults.heartbeat import ALIVE
from ma2mba.training.faults.stop_vote import LostRank

FAILURES, STUCK, BEFORE, FIRST = "failures", "stuck", ".before", "first.json"
EXIT_FAILED, EXIT_USER, EXIT_STUCK = 1, 2, 3
PATIENCE_SECONDS = 3.0
"""How long a rank whose collective broke waits for the one that broke it to be heard."""
TOLD_SECONDS = 60.0
"""The same where that one has said that it failed: it still closes what it has open before it tells its story."""
BROKEN_COLLECTIVE = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "nccl",
    "socket timeout",
    "distnetworkerror",
    "lostrank",
)
"""What gloo, NCCL, the ranks' store (rank 0 keeps it) and `agreement.py` say on a rank of which another has ended, in
lower case."""


def clear(run: Path) -> None:
    """Put the reports of the launch before aside (one generation), and its signs of life away. Rank 0, before the
    processes join."""
    shutil.rmtree(run / ALIVE, ignore_errors=True)
    for name in (FAILURES, STUCK):
        if (run / name).is_dir():
            shutil.rmtree(run / (name + BEFORE), ignore_errors=True)
            os.replace(run / name, run / (name + BEFORE))


def claim(run: Path, facts: dict[str, Any]) -> bool:
    """Be the first to fail: True for exactly one rank. Also True where the run folder cannot be written."""
    folder = run / FAILURES
    whole = folder / f".{FIRST}.{uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        whole.write_text(json.dumps(facts), encoding="utf-8")
        _put(whole, folder / FIRST)
    except FileExistsError:
        return False
    except OSError:
        return True
    finally:
        with suppress(OSError):
            whole.unlink(missing_ok=True)
    return True


def _put(whole: Path, path: Path) -> None:
    """Give a file its name, unless the name is taken (FileExistsError): nobody sees it half-written."""
    try:
        os.link(whole, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with open(path, "x", encoding="utf-8") as file:
            file.write(whole.read_text(encoding="utf-8"))


def first(run: Path) -> dict[str, Any] | None:
    """What the first rank that failed wrote; None as long as all is well."""
    try:
        return json.loads((run / FAILURES / FIRST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):  # it is being written
        return {"rank": "another", "what": "failed"}


def report(error: Exception, run: Path, rank: int, activity: Activity, explain: Callable[[], str | None]) -> int:
    """Tell of an error that ends this rank, on stderr and in RUN/failures; returns the exit code.

    `explain` gives a message for people in place of the traceback, or None.
    """
    code = EXIT_USER if isinstance(error, UserError) else EXIT_FAILED
    facts = {"rank": rank, "what": "failed", "exit_code": code, **activity.facts(), "error": repr(error)[:1000]}
    text = "".join(traceback.format_exception(error))
    bereft = _caused_by_another(error)
    if bereft:
        await_first(run, TOLD_SECONDS if isinstance(error, LostRank) else PATIENCE_SECONDS)
    if not claim(run, facts):
        sys.stderr.write(f"rank {rank} ends: {after_whom(run)}\n")
        _keep(run, rank, facts, text)
        return exit_code(run)
    if code == EXIT_USER:
        sys.stderr.write(f"error: {error}\n  (rank {rank}, {in_words(facts)})\n")
        _keep(run, rank, facts, str(error))
        return code
    story = _explained(explain, text)
    heading = "lost another rank, which ended without a word (was it killed?)" if bereft else "failed first"
    sys.stderr.write(f"rank {rank} {heading} ({in_words(facts)}):\n{story.rstrip()}\n")
    _keep(run, rank, facts, text if story == text else f"{story}\n\n{text}")
    return code


def _explained(explain: Callable[[], str | None], text: str) -> str:
    try:
        return explain() or text
    except Exception as error:  # the first error is the one to hear of
        return f"{text}(it could not be explained: {error!r})"


def await_first(run: Path, seconds: float) -> None:
    """Wait until a rank has said that it failed first, or so long."""
    until = time.monotonic() + seconds
    while first(run) is None and time.monotonic() < until:
        time.sleep(0.1)


def after_whom(run: Path) -> str:
    """Which rank failed first, and where its story stands."""
    facts = first(run) or {"rank": "another", "what": "failed"}
    return f"rank {facts['rank']} {facts['what']} first (see {run / FAILURES})"


def exit_code(run: Path) -> int:
    """With which all ranks end: that of the first."""
    return int((first(run) or {}).get("exit_code", EXIT_FAILED))


def _caused_by_another(error: Exception) -> bool:
    text = f"{type(error).__name__}: {error}".lower()
    return any(words in text for words in BROKEN_COLLECTIVE)


def _keep(run: Path, rank: int, facts: dict[str, Any], text: str) -> None:
    try:
        with atomic_write(run / FAILURES / f"rank-{rank}.txt") as file:
            file.write(f"rank {rank}: {in_words(facts)}\n\n{text}\n")
    except OSError:
        sys.stderr.write(f"rank {rank}: {run / FAILURES} cannot be written\n")

"""Report the first rank that fails, and end all others at once: RUN/failures and RUN/stuck.

The rank that creates RUN/failures/first.json failed first and prints its full report. Any rank that fails later prints
one line: most later failures are broken collectives, caused by the first. Every rank writes its own traceback to
RUN/failures/rank-N.txt.
"""

import json
import os
import shutil
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from ma2mba.errors import UserError
from ma2mba.files import atomic_write
from ma2mba.terminal import error_text, write_error
from ma2mba.training.faults.activity import Activity, describe_activity
from ma2mba.training.faults.heartbeat import ALIVE
from ma2mba.training.faults.stop_vote import LostRank

FAILURES, STUCK, BEFORE, FIRST = "failures", "stuck", ".before", "first.json"
EXIT_FAILED, EXIT_USER, EXIT_STUCK = 1, 2, 3
PATIENCE_SECONDS = 3.0
"""How long a rank with a broken collective waits for the report of the rank that broke it."""
LOST_RANK_PATIENCE_SECONDS = 60.0
"""The same wait when the other rank has announced its failure (LostRank): it closes its files before it reports."""
BROKEN_COLLECTIVE = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "nccl",
    "socket timeout",
    "distnetworkerror",
    "lostrank",
)
"""Lower-case words of the errors that a rank raises when another rank has ended.

They come from gloo, from NCCL, from the store on rank 0 and from `stop_vote.py`.
"""
UNKNOWN_RANK = {"rank": "another", "what": "failed"}
"""Stands for the first failure while its report cannot be read."""


def clear(run: Path) -> None:
    """Move the previous launch's reports aside (one generation is kept) and remove its heartbeats.

    Rank 0 calls it before the processes join.
    """
    shutil.rmtree(run / ALIVE, ignore_errors=True)
    for name in (FAILURES, STUCK):
        if (run / name).is_dir():
            shutil.rmtree(run / (name + BEFORE), ignore_errors=True)
            os.replace(run / name, run / (name + BEFORE))


def claim_first(run: Path, facts: dict[str, Any]) -> bool:
    """Write `facts` as the first failure. Return True for exactly one rank, or if the run folder is not writable."""
    folder = run / FAILURES
    temporary = folder / f".{FIRST}.{uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(facts), encoding="utf-8")
        _publish(temporary, folder / FIRST)
    except FileExistsError:
        return False
    except OSError:
        return True
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def _publish(temporary: Path, path: Path) -> None:
    """Make a complete file visible as `path`. Raise FileExistsError if `path` exists."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with open(path, "x", encoding="utf-8") as file:
            file.write(temporary.read_text(encoding="utf-8"))


def first_failure(run: Path) -> dict[str, Any] | None:
    """Return the report of the rank that failed first, None if no rank has failed."""
    try:
        return json.loads((run / FAILURES / FIRST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):  # the other rank is still writing it
        return UNKNOWN_RANK


def report(error: Exception, run: Path, rank: int, activity: Activity, explain: Callable[[], str | None]) -> int:
    """Report the error that ends this rank on stderr and in RUN/failures. Return the exit code.

    `explain` returns a message to print in place of the traceback, or None.
    """
    code = EXIT_USER if isinstance(error, UserError) else EXIT_FAILED
    facts = {"rank": rank, "what": "failed", "exit_code": code, **activity.facts(), "error": repr(error)[:1000]}
    text = "".join(traceback.format_exception(error))
    collective_broke = _is_broken_collective(error)
    if collective_broke:
        _wait_for_first_failure(run, LOST_RANK_PATIENCE_SECONDS if isinstance(error, LostRank) else PATIENCE_SECONDS)
    if not claim_first(run, facts):
        write_error(f"rank {rank} ends: {describe_first_failure(run)}\n")
        _write_report(run, rank, facts, text)
        return first_exit_code(run)
    if code == EXIT_USER:
        write_error(f"error: {error_text(str(error))}\n  (rank {rank}, {describe_activity(facts)})\n")
        _write_report(run, rank, facts, str(error))
        return code
    explained = _explained(explain, text)
    heading = "lost contact with a rank that left no report (was it killed?)" if collective_broke else "failed first"
    write_error(f"rank {rank} {heading} ({describe_activity(facts)}):\n{explained.rstrip()}\n")
    _write_report(run, rank, facts, text if explained == text else f"{explained}\n\n{text}")
    return code


def _explained(explain: Callable[[], str | None], text: str) -> str:
    try:
        return explain() or text
    except Exception as error:  # report the original error, not the failed explanation
        return f"{text}(no explanation of this error: {error!r})"


def _wait_for_first_failure(run: Path, seconds: float) -> None:
    """Wait until a rank has reported the first failure, at most `seconds`."""
    until = time.monotonic() + seconds
    while first_failure(run) is None and time.monotonic() < until:
        time.sleep(0.1)


def describe_first_failure(run: Path) -> str:
    """Return which rank failed first and where its report is."""
    facts = first_failure(run) or UNKNOWN_RANK
    return f"rank {facts['rank']} {facts['what']} first (see {run / FAILURES})"


def first_exit_code(run: Path) -> int:
    """Return the exit code of the rank that failed first. All ranks end with this code."""
    return int((first_failure(run) or {}).get("exit_code", EXIT_FAILED))


def _is_broken_collective(error: Exception) -> bool:
    text = f"{type(error).__name__}: {error}".lower()
    return any(words in text for words in BROKEN_COLLECTIVE)


def _write_report(run: Path, rank: int, facts: dict[str, Any], text: str) -> None:
    try:
        with atomic_write(run / FAILURES / f"rank-{rank}.txt") as file:
            file.write(f"rank {rank}: {describe_activity(facts)}\n\n{text}\n")
    except OSError as error:
        write_error(f"rank {rank}: {run / FAILURES} cannot be written ({error.strerror})\n")

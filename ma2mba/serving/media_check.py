"""Check media before anything decodes them: what they are, and how long they last. The work is done in a watched worker
process with limits of memory and time, since the bytes come from strangers.
"""

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ma2mba.errors import UserError
from ma2mba.limits import PREFIX, limits
from ma2mba.serving.contract import Kind
from ma2mba.serving.errors import Refused
from ma2mba.video.errors import MediaError
from ma2mba.video.length import Length, Wanted, measure_item
from ma2mba.video.pool import Pool, Task

log = logging.getLogger(__name__)
GB = 10**9
STALL_SECONDS = 60.0
"""Seconds without progress after which the check of a medium is given up."""
CHECKERS = 2
"""Media that are checked at the same time."""
OPERATOR = "Send a smaller or shorter one, or ask the server's operator to raise the limit"


class Checker:
    """Checks media in worker processes that start when they are first needed. `hours`: of the longest video."""

    def __init__(self, hours: float):
        self._hours, self._own = hours, threading.local()
        self._threads = ThreadPoolExecutor(CHECKERS, "check")
        self._pools: list[Pool] = []
        self._closed = False

    async def check(self, path: Path, kind: Kind | None, name: str) -> Length:
        """Return what a file is. Raise Refused, which calls the file `name`, if it cannot be asked about."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, self._run, Wanted(path, kind, self._hours))
        if isinstance(found, Length) and not found.damage and found.seconds <= self._hours * 3600:
            return found
        raise refusal(found, name, self._hours)

    def _run(self, wanted: Wanted) -> Length | UserError:
        """Check a medium with this thread's pool."""
        if not hasattr(self._own, "pool"):
            self._own.pool = Pool(measure_item, 1, int(limits().decoder_gb * GB))
            self._pools.append(self._own.pool)
        results: list[Any] = []
        try:
            self._own.pool.run([Task(0, [wanted])], lambda _, result: results.append(result), stall=STALL_SECONDS)
        except UserError as error:
            return error
        except (OSError, RuntimeError) as error:  # no worker could be started, or it failed before it began
            if not self._closed:
                log.exception("a medium could not be checked")
            return UserError(str(error))
        return results[0] if results else UserError("the check was stopped")

    def close(self) -> None:
        """Kill the workers: what is being checked is refused."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for pool in self._pools:
            pool.close()


def refusal(found: Length | UserError, name: str, hours: float) -> Refused:
    """Return why a client's medium is refused, without the server's paths, and with a remedy for the client."""
    if isinstance(found, Length):
        if found.damage:
            return Refused(f"{name}: {found.damage}. Send a complete file", 400, "damaged_media")
        lasts = f"lasts {found.seconds / 3600:.2f} hours, and {hours:g} are allowed"
        return Refused(f"{name}: {lasts}. Cut it into parts, or send a shorter one", 413, "video_too_long")
    if not isinstance(found, MediaError):
        return Refused(f"{name}: cannot be checked now. Try again", 503, "check_failed", retry_after=10)
    reason = found.reason.replace(found.path, name).replace(Path(found.path).name, name)
    if "hours, more than" in reason:
        return Refused(f"{name}: {reason}. Cut it into parts, or send a shorter one", 413, "video_too_long")
    if PREFIX in found.remedy:
        return Refused(f"{name}: {reason}. {OPERATOR}", 413, "media_too_large")
    return Refused(f"{name}: {reason}. Send a complete, readable video or picture", 415, "unsupported_media")

"""Stop the only worker of a build in the middle of a clip."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

LIMIT_SECONDS = 120


def in_the_background(work: Callable[[], object]) -> threading.Thread:
    """Start a thread during a build. A thread that never ends does not keep the tests from ending."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def stop_within_a_clip(name: str, ready: Callable[[], bool] = lambda: True) -> int:
    """Once `ready()`, stop the worker while it has a file open whose name ends in `name`; return its process id."""
    until = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < until:
        for worker in children() if ready() else []:
            with contextlib.suppress(OSError):
                if not opens(worker, name):
                    continue
                stop(worker)
                if opens(worker, name):
                    return worker
                os.kill(worker, signal.SIGCONT)
        time.sleep(0.001)
    raise TimeoutError(f"no worker had {name} open")


def children() -> list[int]:
    """Return the ids of the processes that this process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # a process that has just ended
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(path.parent.name))
    return found


def stop(pid: int) -> None:
    """Stop a process, and return when it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TZ":
        time.sleep(0.001)


def opens(pid: int, name: str) -> bool:
    try:
        return any(os.readlink(link).endswith(name) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False

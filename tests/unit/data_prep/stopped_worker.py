"""A build's one worker, stopped in the middle of a clip."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

LIMIT_SECONDS = 120


def in_the_background(work: Callable[[], object]) -> threading.Thread:
    """Started, beside a build; a thread that is never done does not keep the tests from ending."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def stop_within_a_clip(name: str, ready: Callable[[], bool] = lambda: True) -> int:
    """Stop the worker while it has a file open whose name ends so, once it is `ready`; returns its process id."""
    until = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < until:
        workers = multiprocessing.active_children() if ready() else []
        for worker in workers:
            stop(worker.pid)
            if opens(worker.pid, name):
                return worker.pid
            os.kill(worker.pid, signal.SIGCONT)
        time.sleep(0.001)
    raise TimeoutError(f"no worker had {name} open")


def stop(pid: int) -> None:
    """Returns when it stands still."""
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TZ":
        time.sleep(0.001)


def opens(pid: int, name: str) -> bool:
    try:
        return any(os.readlink(link).endswith(name) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False

"""Limit the memory of this process for a while: a small file may take much memory when it is decompressed.

A model folder has a copy of this file.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import resource
except ImportError:  # on Windows, which a model folder may meet
    resource = None  # type: ignore[assignment]


class _Inner:
    """How many `at_most` blocks are open in this process, in all its threads: the limit belongs to the process."""

    lock, depth = threading.Lock(), 0


@contextmanager
def at_most(extra: int, held: int | None = None) -> Iterator[bool]:
    """Limit this process in the block to `extra` bytes of data beyond `held`. Larger requests raise MemoryError.

    `held`: what `held_bytes` has returned shortly before, for a block that runs often (default: call it). Yield True if
    this limit is the lowest: False within another `at_most`, and in a process that may use less anyway.
    """
    if resource is None:
        yield False
        return
    with _Inner.lock:
        before, hard = resource.getrlimit(resource.RLIMIT_DATA)
        held = held_bytes() if held is None else held
        lowest = _Inner.depth == 0 and held > 0 and (before == resource.RLIM_INFINITY or held + extra < before)
        if lowest:
            resource.setrlimit(resource.RLIMIT_DATA, (held + extra, hard))
        _Inner.depth += 1
    try:
        yield lowest
    finally:
        with _Inner.lock:
            _Inner.depth -= 1
            if lowest:
                resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


@contextmanager
def unlimited() -> Iterator[None]:
    """Let `at_most` limit nothing in the block: for a process whose other threads take memory meanwhile."""
    with _Inner.lock:
        _Inner.depth += 1
    try:
        yield
    finally:
        with _Inner.lock:
            _Inner.depth -= 1


def held_bytes() -> int:
    """Return the bytes of data that this process holds; 0 if the system does not report it."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0


def machine_bytes() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

"""Limit the memory of a process."""

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY = 2 << 30
"""Bytes that decoding may use on top of what a worker holds at its start. 8K video needs most of these bytes."""


def limit_memory(extra: int) -> None:
    """Limit this process to `extra` bytes of data beyond what it holds now. Larger requests raise MemoryError."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _data_bytes() + extra
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


class _Inner:
    """How many `at_most` blocks are open in this process, in all its threads: the limit belongs to the process."""

    lock, depth = threading.Lock(), 0


@contextmanager
def at_most(extra: int) -> Iterator[bool]:
    """Limit this process to `extra` more bytes of data in the block. Larger requests raise MemoryError.

    Yield True if this limit is the lowest: False within another `at_most`, and in a process that may use less anyway.
    """
    with _Inner.lock:
        before, hard = resource.getrlimit(resource.RLIMIT_DATA)
        held, first = _data_bytes(), _Inner.depth == 0
        lowest = first and held > 0 and (before == resource.RLIM_INFINITY or held + extra < before)
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


def _data_bytes() -> int:
    """Return the bytes of data that this process holds; 0 if the system does not report it."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0

"""Limit the memory of a process."""

import resource
from pathlib import Path

MEMORY = 2 << 30
"""Bytes that decoding may use on top of what a worker holds at its start. 8K video needs most of these bytes."""


def limit_memory(extra: int) -> None:
    """Limit this process to `extra` bytes of data beyond what it holds now. Larger requests raise MemoryError."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _data_bytes() + extra
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _data_bytes() -> int:
    """Return the bytes of data that this process holds; 0 if the system does not report it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0

"""How much memory a process may take."""

import resource
from pathlib import Path

MEMORY = 2 << 30
"""Bytes that decoding may take beyond what a worker holds when it starts; 8K video needs most of it."""


def limit_memory(extra: int) -> None:
    """Let this process hold `extra` bytes of data more than now; what asks for more raises MemoryError."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _held() + extra
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _held() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0

"""Limit the memory of a process."""

import resource

from ma2mba.memory import held_bytes

MEMORY = 2 << 30
"""Bytes that decoding may use on top of what a worker holds at its start. 8K video needs most of these bytes."""


def limit_memory(extra: int) -> None:
    """Limit this process to `extra` bytes of data beyond what it holds now. Larger requests raise MemoryError."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = held_bytes() + extra
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))

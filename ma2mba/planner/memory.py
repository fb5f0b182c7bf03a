"""Units and limits of memory: the usable share of a device, and the memory of this host.

The host may be a container or a job with limits of its own (control groups v1 and v2).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
USABLE = 0.94
"""The share of a device's memory that a plan may use. CUDA's context and gaps between the allocator's blocks take the
rest."""


@dataclass(frozen=True)
class Host:
    """The folders in which Linux reports memory."""

    proc: Path = Path("/proc")
    groups: Path = Path("/sys/fs/cgroup")

    def memory(self) -> int:
        """Return the bytes that this process and all others in its control groups may use."""
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min([total, *(limit for limit, _ in self._limits())])

    def free(self) -> int:
        """Return the bytes that no process uses. The page cache counts as free."""
        return max(0, min([self._available(), *(limit - used for limit, used in self._limits())]))

    def _available(self) -> int:
        try:
            return _facts(self.proc / "meminfo")["MemAvailable:"] * 1024
        except (OSError, KeyError):  # not Linux: half of all memory
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2

    def _limits(self) -> Iterator[tuple[int, int]]:
        """Yield the limit and the use of each group that has a limit, from this process's group up to the root."""
        for folder in self._folders():
            for limit, used, cached in (
                ("memory.max", "memory.current", "inactive_file"),
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            ):
                try:
                    most = int((folder / limit).read_text(encoding="ascii"))
                    files = _facts(folder / "memory.stat").get(cached, 0)
                    yield most, int((folder / used).read_text(encoding="ascii")) - files
                except (OSError, ValueError):  # no such file, or "max"
                    continue

    def _folders(self) -> Iterator[Path]:
        """Yield the folders of the groups. A container may see its own group as the root, under a name of the host."""
        try:
            lines = (self.proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
        except OSError:
            return
        for line in lines:
            _, controllers, name = line.split(":", 2)
            if controllers in ("", "memory"):
                roots = [self.groups, self.groups / "unified"] if not controllers else [self.groups / "memory"]
                parts = Path(name).parts[1:]
                yield from (root.joinpath(*parts[:depth]) for root in roots for depth in range(len(parts), -1, -1))


def _facts(path: Path) -> dict[str, int]:
    """Return the first word of every line with the number behind it."""
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}

"""Run a command of ma2mba in a child that is forked after the imports: fast, measured, and killed after a time."""

import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

IMPORTS_MB = 400
"""Memory of a process that has imported what a command needs, with a CPU build of PyTorch."""


@dataclass(frozen=True)
class Outcome:
    """What a command did. `code` is its exit code, or minus the signal that ended it.

    `peak_mb`: the largest resident memory of the command and of each worker that it waited for. A forked child starts
    with the memory of the tests; what they hold beyond IMPORTS_MB (PyTorch with CUDA, for example) does not count.
    """

    code: int
    out: str
    err: str
    peak_mb: float
    seconds: float

    @property
    def refused(self) -> bool:
        """Return True for exit code 2 with one error line and no traceback."""
        lines = re.findall(r"^error:", self.err, re.MULTILINE)
        return self.code == 2 and "Traceback" not in self.err + self.out and len(lines) == 1


def run(
    *arguments: str | Path, cwd: Path | None = None, limit_s: float = 120, memory_gb: float = 4.0, stdin: str = ""
) -> Outcome:
    """Run `ma2mba` with these arguments in a forked child. A child that runs longer than `limit_s` is killed."""
    from ma2mba.cli.app import main

    return call(lambda: main([str(argument) for argument in arguments]), cwd, limit_s, memory_gb, stdin)


def call(
    work: Callable[[], object],
    cwd: Path | None = None,
    limit_s: float = 120,
    memory_gb: float = 4.0,
    stdin: str = "",
) -> Outcome:
    """Call a function in a forked child, as `run` does a command. A child may allocate `memory_gb` beyond its start."""
    with tempfile.TemporaryDirectory() as folder:
        given, *streams = [Path(folder) / name for name in ("in", "out", "err")]
        given.write_text(stdin, encoding="utf-8", errors="surrogateescape")
        began, beyond_mb = time.monotonic(), max(0, _resident_bytes() / 2**20 - IMPORTS_MB)
        child = os.fork()
        if child == 0:
            _child(work, given, streams, cwd, memory_gb)
        status, peak = _wait(child, began + limit_s)
        texts = [path.read_text(encoding="utf-8", errors="backslashreplace") for path in streams]
    return Outcome(os.waitstatus_to_exitcode(status), *texts, peak / 1024 - beyond_mb, time.monotonic() - began)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _wait(child: int, until: float) -> tuple[int, int]:
    """Return the child's wait status and its peak memory in KiB. Kill its process group after `until`."""
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            return status, used.ru_maxrss
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            until = float("inf")
        time.sleep(0.005)


def _child(
    work: Callable[[], object], given: Path, streams: Sequence[Path], cwd: Path | None, memory_gb: float
) -> None:
    code = 1
    try:
        os.setsid()
        for number, path in enumerate(streams, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        os.dup2(os.open(given, os.O_RDONLY), 0)
        sys.stdin = os.fdopen(0, errors="surrogateescape", closefd=False)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)  # not pytest's
        if cwd:
            os.chdir(cwd)
        held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (held + int(memory_gb * 1e9), resource.RLIM_INFINITY))
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        os.write(2, traceback.format_exc().encode(errors="backslashreplace"))
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)

"""Lock a run folder, so that two launches cannot write to it: RUN/lock names the process that trains there.

Rank 0 of a launch holds the lock from before it reads the latest checkpoint until it ends. The file is locked with
flock, which Linux also passes to an NFS server, and which ends with the process. File systems without such locks, or
with locks that other hosts do not see, are covered by the content of the file: a process on this host is looked up by
its id and start time; a process on another host refreshes the file's time, which is compared with itself only, because
the clocks of hosts differ.
"""

import errno
import fcntl
import logging
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from ma2mba.errors import UserError
from ma2mba.files import inside
from ma2mba.model.run_folder import CHECKPOINTS
from ma2mba.terminal import one_line
from ma2mba.text import shorten
from ma2mba.training.faults.heartbeat import BEAT_SECONDS, LOST_SECONDS

log = logging.getLogger(__name__)
LOCK = "lock"
LOCK_BYTES = 4096
POLL_SECONDS = 0.5
START_TOLERANCE = 2.0
"""Seconds by which two readings of a process's start time may differ: the system's clock is corrected meanwhile."""
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of flock on file systems without locks."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Holder(BaseModel):
    """The process that holds a lock. `boot` is the id of the boot of its host: hosts may share a name."""

    model_config = ConfigDict(frozen=True)
    host: str
    boot: str
    pid: int
    started: float
    since: str

    @staticmethod
    def this_process() -> "Holder":
        started = psutil.Process().create_time()
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        return Holder(host=socket.gethostname(), boot=_boot(), pid=os.getpid(), started=started, since=since)

    def is_alive_here(self) -> bool:
        """Return True if the process runs on this host. A process that got the same id later does not count."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < START_TOLERANCE
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def describe(self) -> str:
        return f"process {self.pid} on {one_line(shorten(self.host))} has trained here since {shorten(self.since)}"


class RunLock:
    """A lock that this process holds. `release` it when the process stops writing to the run folder."""

    def __init__(self, path: Path, descriptor: int):
        self._path, self._descriptor, self._released = path, descriptor, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="ma2mba-lock", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            with suppress(OSError):
                os.utime(self._descriptor)

    def release(self) -> None:
        """Remove the lock. A second call does nothing."""
        if self._released.is_set():
            return
        self._released.set()
        self._thread.join()
        with suppress(OSError):
            if _is_at(self._descriptor, self._path):
                self._path.unlink()
        os.close(self._descriptor)


@contextmanager
def lock_run(run: Path) -> Iterator[RunLock]:
    """Hold the lock of a run folder, which is created if it is missing. Folders that stay empty are removed.

    Raise UserError if another process holds the lock, or if the folder or its checkpoints cannot be written.
    """
    missing = [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        with _writing(run):
            run.mkdir(parents=True, exist_ok=True)
            lock = _take(run, inside(run, LOCK, run))
        try:
            with _writing(run):
                _require_writable(run)
            yield lock
        finally:
            lock.release()
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def _writing(run: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or run}: cannot be written ({error.strerror}). Make it writable and free disk space, or "
            "set run to another folder"
        ) from error


def _take(run: Path, path: Path) -> RunLock:
    while True:
        descriptor = _open(path)
        try:
            _require_free(run, path, descriptor)
            if _is_at(descriptor, path):  # else its holder has just released, and so removed, this file
                content = Holder.this_process().model_dump_json().encode() + b"\n"
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, content, 0)
                os.fsync(descriptor)
                return RunLock(path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: not a regular file. Remove it, or set run to another folder")
    return descriptor


def _require_free(run: Path, path: Path, descriptor: int) -> None:
    """Raise UserError if a process that lives holds the lock."""
    locked = _flock(descriptor)
    holder = _read(descriptor)
    if locked is False:
        raise _busy(run, holder)
    if holder is None:
        return
    if holder.boot == _boot():
        if locked is None and holder.is_alive_here():
            raise _busy(run, holder)
    elif _beats(run, path, holder):
        raise _busy(run, holder)
    log.info("%s: %s, and has ended without releasing it. This run takes over", path, holder.describe())


def _flock(descriptor: int) -> bool | None:
    """Return True if this process now has the lock, False if another process has it, None without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return None
        raise
    return True


def _read(descriptor: int) -> Holder | None:
    """Return the holder that a lock file names; None if it names none, or its write was cut off."""
    try:
        return Holder.model_validate_json(os.pread(descriptor, LOCK_BYTES, 0))
    except ValidationError:
        return None


def _busy(run: Path, holder: Holder | None) -> UserError:
    who = holder.describe() if holder else "another process trains here"
    return UserError(f"{run}: {who}. Wait until it ends, stop it, or set run to another folder")


def _beats(run: Path, path: Path, holder: Holder) -> bool:
    """Return True if a process on another host refreshes its lock within LOST_SECONDS."""
    try:
        with tempfile.NamedTemporaryFile(dir=run) as now:  # the clock of the file system's server
            first = path.stat().st_mtime_ns
            if os.fstat(now.fileno()).st_mtime_ns - first > LOST_SECONDS * 1e9:
                return False
        log.info("%s: %s. Waiting up to %.0f s for a sign of it", path, holder.describe(), LOST_SECONDS)
        until = time.monotonic() + LOST_SECONDS
        while time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)  # NFS asks its server when a file is opened
            try:
                if os.fstat(descriptor).st_mtime_ns != first:
                    return True
            finally:
                os.close(descriptor)
    except FileNotFoundError:  # released meanwhile
        pass
    return False


def _require_writable(run: Path) -> None:
    """Raise OSError unless the run's checkpoints can be written. Training writes there hours later."""
    folder = inside(run, CHECKPOINTS, run)
    if os.path.lexists(folder):
        try:
            with tempfile.NamedTemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from error


def _is_at(descriptor: int, path: Path) -> bool:
    """Return True if an open file is still the file at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _boot() -> str:
    """Return the id of this host's boot; where the system has none, the host's name."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()

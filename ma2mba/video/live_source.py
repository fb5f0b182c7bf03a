"""Open what is watched while it comes: standard input, a file that grows, or rtsp://.

A pipe and a file are read here, from the first byte to the last, and FFmpeg gets the bytes: it opens nothing. For
rtsp://, FFmpeg opens network connections, and no other protocol or format than RTSP over TCP: TCP loses no packets.
"""

import errno
import os
import select
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from ma2mba.limits import limits
from ma2mba.video.errors import MediaError, reading_memory
from ma2mba.video.formats import VIDEO_DEMUXERS
from ma2mba.video.pyav import OPENING, OPTIONS, error_text, raise_if_out_of_memory, video_stream
from ma2mba.video.structure import check_structure

RTSP = "rtsp://"
RTSP_OPTIONS = {
    "protocol_whitelist": "rtsp,rtp,tcp",
    "format_whitelist": "rtsp,mpegts",  # a camera may send MPEG-TS within RTP
    "rtsp_transport": "tcp",
}
TICK = 0.1
"""Seconds between two looks at a source that has nothing new."""
REMEDY = "Send MPEG-TS, Matroska or fragmented MP4"


@dataclass(frozen=True)
class Source:
    """What is watched: "-" (bytes from `fd`), the path of a file, or an rtsp:// URL.

    It ends when nothing comes for `idle` seconds; a pipe and RTSP also when the sender ends.
    """

    name: str
    idle: float
    fd: int | None = None

    @property
    def is_file(self) -> bool:
        return self.fd is None and not self.name.startswith(RTSP)

    @property
    def shown(self) -> str:
        """The name for messages and state files: a URL without its password."""
        if self.name == "-":
            return "standard input"
        if not self.name.startswith(RTSP):
            return self.name
        host, slash, path = self.name[len(RTSP) :].partition("?")[0].partition("/")
        return f"{RTSP}{host.rpartition('@')[2]}{slash}{path}"


class Reading(Protocol):
    """How the reading of a source stands.

    `ended` says why it has ended, "" while it goes on; `damage` says why what was read is not all, "" if nothing is.
    """

    ended: str
    damage: str

    def lag(self, second: float) -> float:
        """Return about how many seconds the source is ahead of the frame at this second, which was just read."""


@contextmanager
def open_source(source: Source, beat: Callable[[], None]) -> Iterator[tuple[Reading, InputContainer, VideoStream]]:
    """Open a source, wait for its first frames, and close it afterwards. `beat` is called while it is waited for.

    Raise MediaError if the source is not a readable stream of video.
    """
    path = Path(source.shown)
    if source.name.startswith(RTSP):
        network = Network()
        with _open(source, network, source.name, RTSP_OPTIONS, (OPENING, source.idle)) as container:
            yield network, container, video_stream(path, container)
        return
    if source.fd is None:
        check_structure(path)
    fd = os.open(source.name, os.O_RDONLY | os.O_NONBLOCK) if source.fd is None else source.fd
    try:
        growing = Bytes(fd, source, beat)
        options = {"protocol_whitelist": "none", "format_whitelist": VIDEO_DEMUXERS}
        with _open(source, growing, growing, options, None) as container:
            yield growing, container, video_stream(path, container)
    finally:
        os.close(fd)


def _open(source: Source, reading: Reading, file: Any, options: dict[str, str], timeout: Any) -> InputContainer:
    streams = {"max_streams": str(limits().streams)}
    with reading_memory(Path(source.shown)):
        try:
            return av.open(file, "r", container_options=options | streams, timeout=timeout, **OPTIONS)
        except (av.FFmpegError, ValueError, IndexError) as error:
            raise_if_out_of_memory(error)
            code = getattr(error, "errno", None)
            reason = "its format is no video format" if code == errno.EINVAL else error_text(error)
            raise MediaError(
                source.shown, f"not a readable stream of video ({_both(reading, reason)})", REMEDY
            ) from error


def _both(reading: Reading, reason: str) -> str:
    return f"{reading.ended}; {reason}" if reading.ended else reason


class Pace:
    """How far a source is ahead that says nothing about it: a frame comes at its second at the latest.

    The clock starts at the first frame. It is set again when a frame comes early or was waited for.
    """

    def __init__(self) -> None:
        self._start = float("inf")

    def lag(self, second: float, *, waited: bool) -> float:
        now = time.monotonic()
        self._start = now - second if waited else min(self._start, now - second)
        return now - second - self._start


class Network:
    """An RTSP connection, which FFmpeg reads."""

    def __init__(self) -> None:
        self.ended = self.damage = ""
        self._pace = Pace()

    def lag(self, second: float) -> float:
        return self._pace.lag(second, waited=False)


class Bytes:
    """The bytes of a pipe, or of a file that grows, for FFmpeg: `read` waits for more, and returns b"" at the end."""

    def __init__(self, fd: int, source: Source, beat: Callable[[], None]):
        self.name = source.name  # FFmpeg looks at its suffix
        self.ended = self.damage = ""
        self._fd, self._idle, self._beat = fd, source.idle, beat
        self._file, self._taken = source.is_file, 0
        self._pace, self._waited = Pace(), False

    def read(self, size: int) -> bytes:
        """Return at least one byte and at most `size`; b"" when the source has ended."""
        since = time.monotonic()
        while not self.ended:
            if some := self._take(size):
                self._taken += len(some)
                return some
            self._waited = True
            if time.monotonic() - since >= self._idle:
                self.ended = self.ended or f"nothing came for {self._idle:g} s"
            self._beat()
        return b""

    def lag(self, second: float) -> float:
        """For a file, judge by its unread bytes."""
        if self._file:
            unread = os.fstat(self._fd).st_size - self._taken
            return max(0, unread) / self._taken * second
        waited, self._waited = self._waited, False
        return self._pace.lag(second, waited=waited)

    def _take(self, size: int) -> bytes:
        """Return what is there; b"" if there is nothing within a TICK."""
        if not self._file and not select.select([self._fd], [], [], TICK)[0]:
            return b""
        some = os.read(self._fd, size)
        if some:
            return some
        if not self._file:
            self.ended = "it ended"
        elif os.fstat(self._fd).st_size < self._taken:
            self.ended = self.damage = "the file became shorter while it was watched"
        else:
            time.sleep(TICK)
        return b""


def require_live(source: Source) -> None:
    """Raise MediaError if there is nothing to open: before a model is loaded."""
    if source.name == "-" or source.name.startswith(RTSP):
        return
    try:
        mode = os.stat(source.name).st_mode
    except (OSError, ValueError) as error:
        raise MediaError(source.name, "no such file", "Name a file, rtsp://..., or - for standard input") from error
    if not stat.S_ISREG(mode):
        remedy = f"Use - for a pipe: ma2mba chat --live - --model DIR < {source.name}"
        raise MediaError(source.name, "not a regular file", remedy)

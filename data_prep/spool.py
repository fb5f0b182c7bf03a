"""Keep the frames of the current sample on disk, so that hours of video need no more memory than seconds."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, overload

from ma2mba.shards.writer import PayloadFrame


class Slot(NamedTuple):
    """The place of some bytes in a spool."""

    offset: int
    length: int


class Spool:
    """A temporary file in `folder` without a name, which the system removes when the process ends.

    It holds one sample at a time: call `clear` before the next sample.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)
        self._end = 0

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def clear(self) -> None:
        """Delete all bytes. Earlier slots become invalid."""
        self._file.truncate(0)
        self._end = 0

    def put(self, data: bytes) -> Slot:
        """Append bytes and return their place."""
        slot = Slot(self._end, len(data))
        self._file.seek(self._end)
        self._file.write(data)
        self._end += len(data)
        return slot

    def get(self, slot: Slot) -> bytes:
        """Return the bytes at `slot`."""
        self._file.seek(slot.offset)
        return self._file.read(slot.length)


class SpooledFrames(Sequence[PayloadFrame]):
    """A sequence of frames (t, pts, slot) that reads the bytes of a frame from the spool on access."""

    def __init__(self, spool: Spool, frames: Sequence[tuple[float, float, Slot]]):
        self._spool, self._frames = spool, frames

    @property
    def times(self) -> list[float]:
        """The time `t` of each frame, without reading the frames."""
        return [t for t, _, _ in self._frames]

    def __len__(self) -> int:
        return len(self._frames)

    @overload
    def __getitem__(self, index: int) -> PayloadFrame: ...
    @overload
    def __getitem__(self, index: slice) -> list[PayloadFrame]: ...
    def __getitem__(self, index: int | slice) -> PayloadFrame | list[PayloadFrame]:
        if isinstance(index, slice):
            return [self._load(frame) for frame in self._frames[index]]
        return self._load(self._frames[index])

    def __iter__(self) -> Iterator[PayloadFrame]:
        return map(self._load, self._frames)

    def _load(self, frame: tuple[float, float, Slot]) -> PayloadFrame:
        t, pts, slot = frame
        return PayloadFrame(t, pts, self._spool.get(slot))

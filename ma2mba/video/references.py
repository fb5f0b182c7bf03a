"""Tell a reference movie, whose pictures lie in another file, from a movie that is merely empty."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"dinf"}
DEPTH, MOST_BOXES = 6, 10_000


def data_elsewhere(path: Path) -> str:
    """Return a reason if a QuickTime movie names other files for its data; "" for other files. Opens only `path`."""
    with open(path, "rb") as file:
        for seen, (kind, content) in enumerate(_boxes(file, 0, path.stat().st_size, 0)):
            if kind == b"rmra" or (kind == b"dref" and _names_a_file(content)):
                return "a reference movie: its pictures lie in another file"
            if seen > MOST_BOXES:
                break
    return ""


def _boxes(file: BinaryIO, at: int, end: int, depth: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type and the first KiB of each box between two offsets, and of the boxes within the PARENTS."""
    while at + 8 <= end:
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return
        size, kind = struct.unpack(">I4s", head[:8])
        skip = 8
        if size == 1 and len(head) == 16:
            size, skip = struct.unpack(">Q", head[8:])[0], 16
        size = size or end - at
        if size < skip:
            return
        file.seek(at + skip)
        yield kind, file.read(min(size - skip, 1024))
        if kind in PARENTS and depth < DEPTH:
            yield from _boxes(file, at + skip, min(at + size, end), depth + 1)
        at += size


def _names_a_file(dref: bytes) -> bool:
    """Return True if the first entry of a data reference box lacks the flag that the data are in the same file."""
    return len(dref) >= 20 and struct.unpack(">I", dref[4:8])[0] > 0 and not dref[19] & 1

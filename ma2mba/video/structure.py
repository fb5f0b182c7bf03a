"""Look at a file's structure before FFmpeg does: what it would read wrongly, or hold in memory as a whole.

A reference movie is a QuickTime file whose pictures lie in another file: FFmpeg would read it as empty or wrong. The
attachments of a Matroska file are read when FFmpeg opens the file, each several times.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ma2mba.limits import limits, raise_limit
from ma2mba.video.errors import MediaError

FIRST = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"dinf"}
DEEPEST = 10
"""Levels of boxes within boxes, as many as FFmpeg reads."""
EBML, SEGMENT, ATTACHMENTS = 0x1A45DFA3, 0x18538067, 0x1941A469
MOST_ELEMENTS = 10_000
"""A file with more elements is not searched to its end: the memory limit of opening remains."""


def check_structure(path: Path) -> None:
    """Raise MediaError for a reference movie, and for attachments larger than limits() allows. Opens only `path`."""
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            reference, attached = _is_reference_movie(file, size), _attached_bytes(file, size)
    except OSError:  # FFmpeg reports this error
        return
    if reference:
        raise MediaError(path, "a reference movie: its pictures lie in another file", "Name that file")
    if attached > limits().attachments_mb * 1e6:
        reason = f"its attachments of {attached / 1e6:,.0f} MB are larger than {limits().attachments_mb:g} MB"
        raise MediaError(path, reason, raise_limit("attachments_mb"))


def _is_reference_movie(file: BinaryIO, size: int) -> bool:
    handler = b""
    for _, (kind, content) in zip(range(MOST_ELEMENTS), _boxes(file, 0, size), strict=False):
        if kind == b"hdlr" and content[4:8] != b"dhlr":
            handler = content[8:12]
        if kind == b"rmra" or (kind == b"dref" and handler == b"vide" and _names_a_file(content)):
            return True
    return False


def _boxes(file: BinaryIO, at: int, end: int, levels: int = DEEPEST) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type and first KiB of each box between two offsets and of the boxes in PARENTS. Stop after moov."""
    while at + 8 <= end:
        file.seek(at)
        head = file.read(16).ljust(16, b"\0")
        size, kind, long = struct.unpack(">I4sQ", head)
        skip = 16 if size == 1 else 8
        size = {0: end - at, 1: long}.get(size, size)
        if size < skip or (at == 0 and kind not in FIRST):
            return
        file.seek(at + skip)
        yield kind, file.read(min(size - skip, 1024))
        if kind in PARENTS and levels > 1:
            yield from _boxes(file, at + skip, min(at + size, end), levels - 1)
        if kind == b"moov":
            return
        at += size


def _names_a_file(dref: bytes) -> bool:
    """Return True if the first entry of a data reference box names a file other than the movie itself."""
    count, size, flags = struct.unpack(">4xII4xI", dref[:20].ljust(20, b"\0"))
    return count > 0 and not flags & 1 and any(dref[20 : 8 + size])


def _attached_bytes(file: BinaryIO, size: int) -> int:
    """Return the bytes of a Matroska file's attachments; 0 for other files."""
    at, total = 0, 0
    for _ in range(MOST_ELEMENTS):
        if at >= size:
            break
        file.seek(at)
        head = file.read(12).ljust(12, b"\0")
        id_bytes = 9 - head[0].bit_length()
        if id_bytes > 4 or (at == 0 and int.from_bytes(head[:4]) != EBML):
            break
        kind, first = int.from_bytes(head[:id_bytes]), head[id_bytes]
        length_bytes = 9 - first.bit_length()
        if length_bytes > 8:
            break
        at += id_bytes + length_bytes
        if kind == SEGMENT:
            continue
        length = int.from_bytes(head[id_bytes : id_bytes + length_bytes]) & ((1 << 7 * length_bytes) - 1)
        total += length if kind == ATTACHMENTS else 0
        at += length
    return total

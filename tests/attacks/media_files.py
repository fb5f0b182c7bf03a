"""Make small media files that attack their reader."""

import io
import os
import struct
import zlib
from fractions import Fraction
from pathlib import Path

from PIL import Image

from tests.unit.video.numbered_video import write

FRAME = Fraction(1, 25)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n%%EOF\n"


def box(kind: bytes, *content: bytes) -> bytes:
    """Return a box of an mp4 or QuickTime file."""
    joined = b"".join(content)
    return struct.pack(">I", 8 + len(joined)) + kind + joined


MATRIX = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def movie(reference: bytes = box(b"url ", struct.pack(">I", 1)), samples: int = 5, tracks: int = 1) -> bytes:
    """Return a QuickTime movie of uncompressed 64 x 64 frames. `reference` says where the pictures are: here."""
    times = struct.pack(">IIII", 0, 0, 1000, 1000)
    kind = box(b"ftyp", b"qt  \0\0\0\0qt  ")
    pictures = box(b"mdat", bytes(64 * 64 * 3 * 5))

    def track(number: int) -> bytes:
        shape = struct.pack(">IIIII16x", 7, 0, 0, number + 1, 0) + MATRIX + struct.pack(">II", 64 << 16, 64 << 16)
        entry = struct.pack(">6xH16xHHII4xH32xHh", 1, 64, 64, 0x480000, 0x480000, 1, 24, -1)
        table = box(
            b"stbl",
            box(b"stsd", struct.pack(">II", 0, 1), box(b"raw ", entry)),
            box(b"stts", struct.pack(">IIII", 0, 1, samples, 40)),
            box(b"stsz", struct.pack(">III", 0, 64 * 64 * 3, samples)),
            box(b"stsc", struct.pack(">IIIII", 0, 1, 1, samples, 1)),
            box(b"stco", struct.pack(">III", 0, 1, len(kind) + 8)),
        )
        where = box(b"dinf", box(b"dref", struct.pack(">II", 0, 1), reference))
        handler = box(b"hdlr", b"\0\0\0\0mhlrvide", bytes(13))
        content = box(b"minf", box(b"vmhd", bytes(12)), where, table)
        return box(b"trak", box(b"tkhd", shape), box(b"mdia", box(b"mdhd", times, bytes(4)), handler, content))

    header = box(
        b"mvhd", times, struct.pack(">IH10x", 0x10000, 0x100), MATRIX, bytes(24), struct.pack(">I", tracks + 1)
    )
    return kind + pictures + box(b"moov", header, *[track(number) for number in range(tracks)])


def alias(path: Path) -> bytes:
    """Return a reference to a file on this disk, as QuickTime writes it."""
    name, whole = path.name.encode(), os.fsencode(path)
    head = struct.pack(">I4xHHH", 0, 150, 2, 0) + b"\3abc".ljust(28, b"\0") + bytes(12)
    head += bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16) + struct.pack(">HH", 1, 1) + bytes(16)
    names = [
        struct.pack(">hh", kind, len(text)) + text + b"\0" * (len(text) % 2) for kind, text in ((2, name), (18, whole))
    ]
    return box(b"alis", head, *names, struct.pack(">hh", -1, 0))


def zeros(mib: int) -> bytes:
    """Return a zlib stream that inflates to this many MiB of zeros. It repeats one block, which saves seconds."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = (mib << 20) % 65521 << 16 | 1
    return b"\x78\xda" + block * mib + b"\3\0" + struct.pack(">I", checksum)


def compressed_header() -> bytes:
    """Return a movie whose header inflates to 1 GiB, from 1 MB."""
    content = box(b"cmvd", struct.pack(">I", 1 << 30), zeros(1024))
    return box(b"ftyp", b"qt  \0\0\0\0qt  ") + box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), content))


def attach(path: Path, size: int) -> None:
    """Write a Matroska file with an attachment of `size` bytes, which take no room on the disk."""
    write(path, range(3), FRAME, codec="ffv1", options={}, format="matroska")
    whole = path.read_bytes()
    at = whole.index(bytes.fromhex("18538067"))
    inner = _element("466e", b"a.ttf") + _element("4660", b"font/ttf") + _element("46ae", b"\1") + _head("465c", size)
    file = _head("61a7", len(inner) + size) + inner
    before = whole[:at] + bytes.fromhex("1853806701ffffffffffffff") + _head("1941a469", len(file) + size) + file
    path.write_bytes(before)
    os.truncate(path, len(before) + size)
    with open(path, "ab") as segment:
        segment.write(whole[at + 12 :])


def _head(kind: str, size: int) -> bytes:
    return bytes.fromhex(kind) + struct.pack(">Q", size | 1 << 56)


def _element(kind: str, content: bytes) -> bytes:
    return _head(kind, len(content)) + content


def png(width: int, height: int, *extra: bytes, pixels: bytes = b"") -> bytes:
    """Return a black RGB picture, or one that only claims its size if it is large."""
    rows = pixels or (1 + width * 3) * min(height, 1000) * b"\0"
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def jpeg(side: int) -> bytes:
    """Return a JPEG file that claims side x side pixels."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    whole = bytearray(file.getvalue())
    at = whole.index(b"\xff\xc0") + 5
    whole[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(whole)


def icon(picture: bytes) -> bytes:
    """Return an ICO file that claims 256 x 256 pixels and holds a PNG file."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(picture), 22) + picture


def tiff(*tags: tuple[int, int, int, int]) -> bytes:
    """Return a grey 64 x 64 TIFF file with more tags: (number, type, count, offset)."""
    usual = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 500)]
    usual += [(277, 3, 1, 1), (278, 4, 1, 64), (279, 4, 1, 4096)]
    entries = sorted([tag for tag in usual if tag[0] not in {tag[0] for tag in tags}] + list(tags))
    listed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + listed + bytes(4)).ljust(500, b"\0") + bytes(4096)

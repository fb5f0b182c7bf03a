"""Tell from which packets a stream can be decoded: those before which the codec's standard allows no reference.

A container's key flag is not enough. H.264 writers also set it for pictures with open groups or with a gradual
refresh; a decoder then starts without a word, but with wrong pixels. For codecs that are not listed here, and at any
doubt, a packet is no entry: the file is decoded from its start.
"""

from collections.abc import Callable, Iterator

from av.packet import Packet
from av.video.stream import VideoStream

ENTRY, PARAMETERS = 4, 8
"""Flags of a packet: decoding can start here, and its frame and all that are shown later are exact; it holds the
parameter sets that it needs."""
HEAD = 1 << 12
"""Bytes at a packet's start that are searched for its first picture."""


def entry_check(stream: VideoStream) -> Callable[[Packet], int]:
    """Return a function that gives the flags of a key packet of this stream: ENTRY, PARAMETERS, both, or 0."""
    context = stream.codec_context
    name, extra = context.name, context.extradata or b""
    if name in ("h264", "hevc"):
        length = 0
        if extra[:1] == b"\1":  # avcC and hvcC: each unit follows its length; otherwise start codes separate them
            at = 4 if name == "h264" else 21
            length = (extra[at] & 3) + 1 if len(extra) > at else 0
        kinds = _h264 if name == "h264" else _hevc
        return lambda packet: kinds(_units(memoryview(packet), length))
    if context.codec.intra_only:
        return lambda packet: ENTRY
    check = {"mpeg1video": _mpeg, "mpeg2video": _mpeg, "vp8": _vp8, "libvpx": _vp8, "vp9": _vp9, "libvpx-vp9": _vp9}
    check |= {"av1": _av1, "libdav1d": _av1, "libaom-av1": _av1}
    if name not in check:
        return lambda packet: 0
    return lambda packet: check[name](bytes(memoryview(packet)[:HEAD]))


def _units(data: memoryview, length: int) -> Iterator[int]:
    """Yield the first byte of each unit of H.264 or HEVC: after `length` bytes of length, or after a start code."""
    at = 0
    while length and at + length < len(data):
        yield data[at + length]
        at += length + int.from_bytes(data[at : at + length])
    head = b"" if length else bytes(data[:HEAD])
    at = head.find(b"\0\0\1")
    while 0 <= at < len(head) - 3:
        yield head[at + 3]
        at = head.find(b"\0\0\1", at + 3)


def _h264(firsts: Iterator[int]) -> int:
    """An IDR picture is an entry. Types: 5 a slice of one, 1 to 4 other slices, 7 and 8 parameter sets."""
    seen: set[int] = set()
    for first in firsts:
        kind = first & 31
        if 1 <= kind <= 5:
            return (ENTRY if kind == 5 else 0) | (PARAMETERS if {7, 8} <= seen else 0)
        seen.add(kind)
    return 0


def _hevc(firsts: Iterator[int]) -> int:
    """IRAP pictures (types 16 to 21) are entries: what is shown after one refers to nothing before it."""
    seen: set[int] = set()
    for first in firsts:
        kind = first >> 1 & 63
        if kind < 32:
            return (ENTRY if 16 <= kind <= 21 else 0) | (PARAMETERS if {33, 34} <= seen else 0)
        seen.add(kind)
    return 0


def _mpeg(head: bytes) -> int:
    """An I picture after a sequence header, which also resets the matrices, is an entry."""
    sequence, picture = head.find(b"\0\0\1\xb3"), head.find(b"\0\0\1\0")
    return ENTRY if 0 <= sequence < picture < len(head) - 5 and head[picture + 5] >> 3 & 7 == 1 else 0


def _vp8(head: bytes) -> int:
    return ENTRY if head and not head[0] & 1 else 0


def _vp9(head: bytes) -> int:
    """A key frame resets the decoder. Bits: 2 of the marker, 2 of the profile, (1 more,) shown again, no key."""
    if not head or head[0] >> 6 != 2:
        return 0
    at = 2 if head[0] >> 4 & 3 == 3 else 3
    return ENTRY if not head[0] >> at & 1 and not head[0] >> (at - 1) & 1 else 0


def _av1(head: bytes) -> int:
    """A shown key frame after a sequence header resets the decoder."""
    at, sequence = 0, False
    while at < len(head):
        kind, extended, sized = head[at] >> 3 & 15, head[at] >> 2 & 1, head[at] >> 1 & 1
        at += 1 + extended
        size, shift = 0, 0
        while sized and at < len(head):
            size |= (head[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if not head[at - 1] & 128:
                break
        if kind in (3, 6):  # a frame's header: shown again (1 bit), the type (2; 0 is a key frame), shown (1)
            return ENTRY if sequence and at < len(head) and head[at] >> 4 == 1 else 0
        sequence |= kind == 1
        if not sized:
            return 0
        at += size
    return 0

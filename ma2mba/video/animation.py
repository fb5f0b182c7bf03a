"""Tell animations from still pictures, and decode animated WebP with Pillow: FFmpeg reads it only since version 9."""

from collections.abc import Callable, Iterator, Set
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image

from ma2mba.limits import limits, raise_limit
from ma2mba.video.errors import MediaError, check_picture_size, file_size, reading_memory
from ma2mba.video.probe import Probe
from ma2mba.video.times import Span

T = TypeVar("T")
MS = Fraction(1, 1000)
SHORTEST, USUAL = 10, 100
"""Viewers show a frame of at most 10 ms for 100 ms, as ffmpeg does."""
BYTES_OF_A_PIXEL = 16
"""Memory that decoding one frame of an animation takes for each pixel."""


def is_animation(path: Path) -> bool:
    """Return True if a picture file is an animated PNG or WebP. Raise MediaError if it cannot be opened."""
    return is_animated_webp(path) or any(kind == b"acTL" for kind in _png_chunks(path))


def is_animated_webp(path: Path) -> bool:
    """Return True if a file is an animated WebP. Raise MediaError if it cannot be opened."""
    file_size(path)
    with _open(path) as file:
        head = file.read(21)
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == 21 and bool(head[20] & 2)


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise MediaError(path, f"cannot be opened ({error.strerror})") from error


def _png_chunks(path: Path) -> Iterator[bytes]:
    """Yield the kinds of the chunks before the picture; nothing for other files."""
    with _open(path) as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return
        while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
            yield head[4:]
            file.seek(int.from_bytes(head[:4]) + 4, 1)


def webp_times(path: Path) -> Probe:
    """Return the times of an animated WebP's frames. Raise MediaError if it holds no whole frame."""
    if (size := file_size(path)) > limits().picture_mb * 1e6:
        reason = f"its {size / 1e6:,.0f} MB are more than {limits().picture_mb:g} MB"
        raise MediaError(path, reason, raise_limit("picture_mb"))
    starts, end, damage, span = [], 0, "", Span(path, MS)
    with _open(path) as file:
        at, total = 12, 8 + int.from_bytes(file.read(8)[4:], "little")
        while at + 8 <= min(size, total):
            file.seek(at)
            head = file.read(24)
            length = int.from_bytes(head[4:8], "little")
            if head[:4] == b"ANMF" and at + 8 + length <= size:
                starts.append(end)
                stated = int.from_bytes(head[20:23], "little")
                end += stated if stated > SHORTEST else USUAL
                span.add(end)
            at += 8 + length + length % 2
    if size < total:
        damage = f"truncated: {total - size} bytes are missing at its end"
    if not starts:
        raise MediaError(path, damage or "it holds no frames")
    return Probe(starts, MS, float(end * MS), False, damage)


def decode_webp(
    path: Path,
    facts: Probe,
    wanted: Set[int],
    use: Callable[[np.ndarray], T],
    beat: Callable[[], None],
    begin: Callable[[], None],
) -> tuple[dict[int, T], str, str]:
    """Return what `use` returned for each wanted frame number, why frames are missing (""), and what is ignored."""
    begin()
    used: dict[int, T] = {}
    number = 0
    try:
        with reading_memory(path, file_size(path)):
            image = Image.open(path, formats=["WEBP"])
        with image:
            check_picture_size(path, *image.size)
            with reading_memory(path, BYTES_OF_A_PIXEL * image.width * image.height + 2 * file_size(path)):
                for number in range(max(wanted) + 1):
                    beat()
                    image.seek(number)
                    if number in wanted:
                        used[number] = use(np.asarray(image.convert("RGB")))
    except (EOFError, OSError, SyntaxError, ValueError) as error:
        return used, f"damaged after frame {number} ({str(error) or 'it ends'})", ""
    return used, facts.damage, ""

"""Notice damaged JPEG files, which Pillow decodes without a word, and write JPEG.

A model folder has a copy of this file. Without simplejpeg, damage is not noticed.
"""

import numpy as np

try:
    import simplejpeg
except ImportError:  # in a model folder's environment
    simplejpeg = None

SOI, EOI, SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA
DAMAGE = ("Corrupt JPEG data", "Premature end", "Inconsistent progression")
"""How libjpeg's warnings about damage begin. Its other warnings and errors are about what it does not know."""
SPACES = {"Gray": "GRAY", "CMYK": "CMYK", "YCCK": "CMYK"}
"""libjpeg's colour spaces and those to decode them to; RGB for the others."""


def complete(data: bytes) -> bytes:
    """Return a JPEG file with its end marker, which some writers leave out."""
    if EOI in data[max(0, data.rfind(bytes([0xFF, SCAN]))) :]:
        return data
    return data + EOI[1:] if data.endswith(EOI[:1]) else data + EOI


def damage(data: bytes) -> str:
    """Return what libjpeg's strict decoding says of a damaged JPEG file; "" if it is sound.

    Zeros between the picture and its end marker are sound. Nothing tells damage that leaves the picture's length.
    """
    picture = _without_applications(complete(data))
    said = _warning(picture)
    if "extraneous bytes before marker 0xd9" in said:
        end = picture.rindex(EOI)
        padded = picture[:end].rstrip(b"\0")
        said = _warning(padded + (b"\0" if padded.endswith(b"\xff") else b"") + picture[end:])
    return said


def _warning(data: bytes) -> str:
    """Decode at an eighth of the size, which reads all of the data. Return what libjpeg says of damage, or ""."""
    if not simplejpeg:
        return ""
    try:
        space = simplejpeg.decode_jpeg_header(data, strict=False)[2]
        simplejpeg.decode_jpeg(data, SPACES.get(space, "RGB"), min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        return str(error) if str(error).startswith(DAMAGE) else ""
    return ""


def _without_applications(data: bytes) -> bytes:
    """Leave out comments and what applications add (thumbnails, profiles): libjpeg warns of versions unknown to it."""
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if kind == SCAN:
            return b"".join(kept) + data[at:]
        if kind == 0xFF:  # a fill byte
            at += 1
            continue
        if not (0xE0 <= kind <= 0xEF or kind == 0xFE):
            kept.append(data[at : at + 2 + length])
        at += 2 + length
    return data


def to_jpeg(picture: np.ndarray, quality: int) -> bytes:
    """Encode an RGB uint8 (H, W, 3) picture as JPEG, with chroma at full resolution (4:4:4)."""
    return simplejpeg.encode_jpeg(picture, quality=quality, colorspace="RGB", colorsubsampling="444")

"""What a browser is told about an uploaded file: what its first bytes say, never what its name says."""

from pathlib import Path

from ma2mba.files import open_regular

BEGINNINGS = {
    b"\x1aE\xdf\xa3": "video/webm",
    b"OggS": "video/ogg",
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG": "image/png",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
}


def media_type(path: Path) -> str:
    """Return the type of a video or picture that browsers show; application/octet-stream for all else."""
    with open_regular(path) as file:
        head = file.read(12)
    if head[4:8] == b"ftyp":
        return "video/mp4"
    if head[:4] == b"RIFF" and head[8:] != b"WEBP":
        return "application/octet-stream"
    return next((kind for start, kind in BEGINNINGS.items() if head.startswith(start)), "application/octet-stream")

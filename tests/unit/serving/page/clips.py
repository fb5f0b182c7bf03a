"""A small video that every browser shows."""

from pathlib import Path

import av
import numpy as np


def write_clip(path: Path, seconds: int = 20) -> Path:
    """Write a WebM file in which a yellow block moves over a blue field."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=5)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for number in range(seconds * 5):
            picture = np.full((180, 320, 3), (40, 90, 160), np.uint8)
            left = number * 3 % 280
            picture[60:120, left : left + 40] = (250, 200, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return path

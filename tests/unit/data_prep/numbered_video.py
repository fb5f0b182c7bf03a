"""Videos whose every frame shows its own number, as ten black or white blocks."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS, BLOCK, HEIGHT = 10, 16, 32


def picture(number: int) -> np.ndarray:
    bits = np.array([number >> i & 1 for i in range(BITS)], np.uint8) * 255
    return np.repeat(np.tile(np.repeat(bits, BLOCK), (HEIGHT, 1))[:, :, None], 3, axis=2)


def number_in(shown: np.ndarray) -> int:
    centres = shown[HEIGHT // 2, BLOCK // 2 :: BLOCK, 1]
    return sum(1 << i for i, value in enumerate(centres) if value > 127)


def write(
    path: Path,
    pts: Sequence[int],
    time_base: Fraction,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
) -> list[Fraction]:
    """Frame i at pts[i] * time_base seconds, with B-frames; returns each frame's time after the first."""
    container_options = {"avoid_negative_ts": "disabled"}
    with av.open(str(path), "w", options=container_options) as container:
        given = {"bf": "3", "g": "48", "threads": "1", "preset": "veryfast"} if options is None else options
        stream = container.add_stream(codec, rate=1 / time_base if codec != "libx264" else None, options=given)
        stream.width, stream.height, stream.pix_fmt = BITS * BLOCK, HEIGHT, "yuv420p"
        stream.codec_context.time_base = time_base
        if codec == "mpeg4":
            stream.codec_context.max_b_frames = 2
        for number, stamp in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = stamp, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return [(stamp - pts[0]) * time_base for stamp in pts]


def expected(times: Sequence[Fraction], seconds: Sequence[float]) -> list[int]:
    """The number of the last frame whose time is not after each second."""
    return [max(i for i, t in enumerate(times) if t <= second) for second in seconds]

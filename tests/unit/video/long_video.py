"""Write a two-hour 360p H.264 file quickly; every frame shows its number in its central square."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

WIDTH, HEIGHT, SECONDS = 640, 360, 7200
GRID, SIDE = 4, HEIGHT // 4
"""4 x 4 blocks of 90 pixels: numbers below 65,536."""
MS = Fraction(1, 1000)


def write_long(path: Path, gap: int, seconds: int = SECONDS) -> list[Fraction]:
    """Write a frame every `gap` ms on a grainy background that moves, with three B-frames in a row; return the times.

    The last frame ends before the last second ends.
    """
    count = (seconds * 1000 - gap) // gap
    rng = np.random.default_rng(0)
    base = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
    grain = Image.fromarray(rng.integers(60, 190, (HEIGHT // 4, WIDTH // 4), np.uint8))
    base[:HEIGHT] = np.asarray(grain.resize((WIDTH, HEIGHT)))
    options = {"preset": "ultrafast", "g": "250", "threads": "1", "crf": "28"}
    options["x264-params"] = "bframes=3:b-adapt=0:b-pyramid=none"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = MS
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(base, number), format="yuv420p")
            frame.pts, frame.time_base = number * gap, MS
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return [number * gap * MS for number in range(count)]


def numbered(base: np.ndarray, number: int) -> np.ndarray:
    """Return `base` (yuv420p) shifted by 3 pixels per frame, with the number's bits as blocks in the middle."""
    picture, left = np.roll(base, 3 * number, axis=1), (WIDTH - HEIGHT) // 2
    bits = np.array([number >> i & 1 for i in range(GRID * GRID)], np.uint8).reshape(GRID, GRID)
    picture[:HEIGHT, left : left + HEIGHT] = np.repeat(np.repeat(bits * 219 + 16, SIDE, 0), SIDE, 1)
    return picture


def number_in(square: np.ndarray) -> int:
    """Return the number that a CLIP view shows: uint8 (S, S, 3)."""
    step = square.shape[0] // GRID
    centres = square[step // 2 :: step, step // 2 :: step, 1][:GRID, :GRID].ravel()
    return sum(1 << i for i, value in enumerate(centres) if value > 127)

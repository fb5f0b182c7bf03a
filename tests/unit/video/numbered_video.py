"""Write videos in which every frame shows its own number, as ten black or white blocks."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS, BLOCK, HEIGHT = 10, 16, 32
X264 = {"bf": "3", "g": "48", "threads": "1", "preset": "veryfast", "x264-params": "b-adapt=0:scenecut=0"}
"""Three B-frames between other frames: x264 itself would choose none for these pictures."""


def picture(number: int, width: int = BITS * BLOCK, height: int = HEIGHT) -> np.ndarray:
    """Return the picture of a number, uint8 RGB. Pixels outside the blocks repeat the edge of the blocks."""
    bits = np.array([number >> i & 1 for i in range(BITS)], np.uint8) * 255
    blocks = np.repeat(np.tile(np.repeat(bits, BLOCK), (height, 1))[:, :, None], 3, axis=2)
    return np.pad(blocks, ((0, 0), (0, width - BITS * BLOCK), (0, 0)), mode="edge")


def number_in(shown: np.ndarray) -> int:
    centres = shown[HEIGHT // 2, BLOCK // 2 : BITS * BLOCK : BLOCK, 1]
    return sum(1 << i for i, value in enumerate(centres) if value > 127)


def write(
    path: Path,
    pts: Sequence[int],
    time_base: Fraction,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (BITS * BLOCK, HEIGHT),
    format: str | None = None,
    sound: int = 0,
    cover: bool = False,
    aspect: Fraction = Fraction(1),
) -> list[Fraction]:
    """Write frame i at pts[i] * time_base seconds, with B-frames; return each frame's time after the first frame.

    `sound` adds this many seconds of silence, `cover` adds cover art (number 1023) before the video.
    `aspect`: width of a pixel relative to its height.
    """
    given = {"avoid_negative_ts": "disabled"} | (container_options or {})
    with av.open(str(path), "w", options=given, format=format) as container:
        if cover:
            front = _picture_stream(container)
        stream = container.add_stream(
            codec, rate=1 / time_base if codec != "libx264" else None, options=X264 if options is None else options
        )
        (stream.width, stream.height), stream.pix_fmt = size, pix_fmt
        stream.codec_context.time_base = time_base
        stream.codec_context.sample_aspect_ratio = aspect
        if codec == "mpeg4":
            stream.codec_context.max_b_frames = 2
        silence = container.add_stream("aac", rate=16000) if sound else None
        if cover:
            container.mux(front.encode(av.VideoFrame.from_ndarray(picture(1023), format="rgb24")))
        for number, stamp in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = stamp, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if silence is not None:
            write_silence(container, silence, sound)
    return [(stamp - pts[0]) * time_base for stamp in pts]


def picture_types(path: Path) -> str:
    """Return the picture type of every frame in shown order: a text of I, P and B."""
    with av.open(str(path)) as container:
        kinds = [av.video.frame.PictureType(frame.pict_type).name for frame in container.decode(video=0)]
    return "".join(kinds)


def write_silence(container, stream, seconds: int) -> None:
    """Write mono silence at 16 kHz."""
    for second in range(seconds):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 16000, second * 16000
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _picture_stream(container):
    stream = container.add_stream("mjpeg", rate=1)
    stream.width, stream.height, stream.pix_fmt = BITS * BLOCK, HEIGHT, "yuvj420p"
    stream.disposition = av.stream.Disposition.attached_pic.value  # PyAV 15 takes only a number
    return stream


def write_cover(path: Path) -> None:
    """Write a file that contains only cover art."""
    with av.open(str(path), "w") as container:
        stream = _picture_stream(container)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(5), format="rgb24")))
        container.mux(stream.encode())


def expected(times: Sequence[Fraction], seconds: Sequence[float]) -> list[int]:
    """Return, for each second, the number of the last frame whose time is not after it."""
    return [max(i for i, t in enumerate(times) if t <= second) for second in seconds]

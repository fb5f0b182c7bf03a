"""Open videos with PyAV. What differs between the versions of PyAV (15 to 19) is handled here."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ma2mba.video.errors import MediaError, file_size

DECODER_VERSION = f"{av.__version__} ffmpeg-{av.ffmpeg_version_info}"
BEFORE_19 = int(av.__version__.split(".")[0]) < 19
OPTIONS: dict[str, Any] = {"metadata_errors": "ignore"} if BEFORE_19 else {}
"""Accept tags that are not UTF-8. PyAV 19 always accepts them and has no such option."""

SINGLE_THREAD: dict[str, Any] = {"threads": 1} if "threads=" in (VideoReformatter.reformat.__doc__ or "") else {}
"""Convert pixels in the calling thread. By default PyAV starts a thread for each core, whose stacks exceed the memory
limit of a worker on a machine with many cores: a healthy video was rejected. PyAV 15 has no such option."""


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file's video stream for single-threaded decoding, then close it. Raise MediaError if there is none."""
    if not file_size(path):
        raise MediaError(path, "the file is empty")
    try:
        container = av.open(str(path), "r", **OPTIONS)
    except (av.FFmpegError, ValueError) as error:
        raise_if_out_of_memory(error)
        raise MediaError(path, f"not a readable video ({error_text(error)})") from error
    with container:
        if container.format.name.endswith("_pipe") or container.format.name == "image2":
            raise MediaError(path, "a still picture, not a video")
        stream = _video_stream(path, container)
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "SLICE"
        stream.codec_context.options = {"err_detect": "explode"}  # damage raises an error; the default guesses pixels
        yield container, stream


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    """Return the video stream that a player would show. Raise MediaError if there is none; cover art is no video."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        reason = "its only picture is a cover" if container.streams.video else "it has no video stream"
        raise MediaError(path, reason)
    best = container.streams.best("video")
    stream = best if isinstance(best, VideoStream) and best in streams else streams[0]
    if stream.codec_context is None or stream.time_base is None:
        raise MediaError(path, "its video codec is unknown")
    return stream


def time_base(stream: VideoStream) -> Fraction:
    """Return the seconds of one tick. PyAV 19 has a class of its own for fractions."""
    ticks = stream.time_base
    assert ticks is not None  # open_video rejects such a stream
    return Fraction(ticks.numerator, ticks.denominator)


def error_text(error: Exception) -> str:
    """Return a decoder's own words for its error."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def raise_if_out_of_memory(error: Exception) -> None:
    """Raise MemoryError if FFmpeg reports ENOMEM: the memory limit is the cause, not a damaged file."""
    if getattr(error, "errno", None) == errno.ENOMEM:
        raise MemoryError(str(error)) from error

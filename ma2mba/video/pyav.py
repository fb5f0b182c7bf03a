"""Open videos with PyAV. What differs between the versions of PyAV (15 to 19) is handled here."""

import contextlib
import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.container.core import Flags
from av.format import Flags as FormatFlags
from av.packet import Packet
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ma2mba.limits import limits, raise_limit
from ma2mba.video.errors import MediaError, check_picture_size, file_size, reading_memory
from ma2mba.video.formats import VIDEO_DEMUXERS, refusal
from ma2mba.video.structure import check_structure

DECODER_VERSION = f"{av.__version__} ffmpeg-{av.ffmpeg_version_info}"
BEFORE_19 = int(av.__version__.split(".")[0]) < 19
OPTIONS: dict[str, Any] = {"metadata_errors": "ignore"} if BEFORE_19 else {}
"""Accept tags that are not UTF-8. PyAV 19 always accepts them and has no such option."""

GEN_PTS: Any = Flags.gen_pts.value
"""PyAV sets this flag by default: FFmpeg then invents times for packets that state none, wrong ones for B-frames."""

SINGLE_THREAD: dict[str, Any] = {"threads": 1} if "threads=" in (VideoReformatter.reformat.__doc__ or "") else {}
"""Convert pixels in the calling thread. By default PyAV starts a thread for each core, whose stacks exceed the memory
limit of a worker on a machine with many cores: a healthy video was rejected. PyAV 16 has no such option."""
OPENING = 120.0
"""Seconds that FFmpeg may take to find the streams, and each packet. It searches a file of zeros byte by byte."""
DECODER_BYTES = 24 * 6
"""Memory of a decoder for each pixel of the video: 24 frames of 6 bytes a pixel."""


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file's video stream for single-threaded decoding, then close it. The one place that opens a video file.

    FFmpeg opens this file and no other one: see formats.py. Raise MediaError if the file has no video stream, or more
    streams or pixels than limits() allows.
    """
    if not file_size(path):
        raise MediaError(path, "the file is empty")
    check_structure(path)
    with _container(path) as container:
        yield container, video_stream(path, container)


def video_stream(path: Path, container: InputContainer) -> VideoStream:
    """Return the stream that a player would show, prepared for decoding in one thread. Raise as `open_video` does."""
    stream = _shown_stream(path, container)
    stream.codec_context.thread_count = 1
    stream.codec_context.thread_type = "SLICE"
    container.flags &= ~GEN_PTS
    check_picture_size(path, stream.width, stream.height)
    stream.codec_context.options = {
        "err_detect": "explode",  # damage raises an error; the default guesses pixels
        "max_pixels": str(int(limits().megapixels * 1e6)),  # refuses a larger frame before it takes memory
    }
    return stream


def _container(path: Path) -> InputContainer:
    with reading_memory(path):
        try:
            return _open(path)
        except (av.FFmpegError, ValueError) as error:
            code = getattr(error, "errno", None)
            refused = _refusal(path) if code in (errno.EINVAL, errno.ENOMEM) else None
            if not refused:
                raise_if_out_of_memory(error)
                refused = MediaError(path, f"not a readable video ({error_text(error)})")
            raise refused from error


def _open(path: Path) -> InputContainer:
    """Open a file with one of VIDEO_DEMUXERS. With `file:`, a name such as `http:/x` or `concat:a.mp4` is a file.

    The argument `options` would crash PyAV 15 if FFmpeg finds the streams while it reads, as in MPEG program streams.
    """
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": VIDEO_DEMUXERS,
        "max_streams": str(limits().streams),
    }
    return av.open(f"file:{path.absolute()}", "r", container_options=options, timeout=OPENING, **OPTIONS)


def _refusal(path: Path) -> MediaError | None:
    """Return why a file is refused although FFmpeg knows its format, from FFmpeg's log; None for other reasons."""
    for demuxer, message in _log(lambda: _open(path).close()):
        if "not on whitelist" in message:
            return MediaError(path, refusal(demuxer), "Name a video file")
        if "max_streams" in message:
            return MediaError(path, f"it has more than {limits().streams} streams", raise_limit("streams"))
    return None


def _log(work: Callable[[], object]) -> list[tuple[str, str]]:
    """Return what FFmpeg logs as errors while `work` runs: (part of FFmpeg, message). Ignore the errors themselves."""
    level, repeated = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as log, contextlib.suppress(av.FFmpegError, ValueError):
            work()
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(repeated)
    return [(part, message) for _, part, message in log]


def _shown_stream(path: Path, container: InputContainer) -> VideoStream:
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


def decoder_memory(stream: VideoStream) -> int:
    """Return the bytes of frames that a decoder may hold, beside limits().reading_mb."""
    return DECODER_BYTES * stream.width * stream.height


def time_base(stream: VideoStream) -> Fraction:
    """Return the seconds of one tick. PyAV 19 has a class of its own for fractions."""
    ticks = stream.time_base
    assert ticks is not None  # open_video rejects such a stream
    return Fraction(ticks.numerator, ticks.denominator)


def frame_rate(container: InputContainer, stream: VideoStream) -> Fraction:
    """Return the average frames per second that the file states; 0 if it states none."""
    rate = stream.average_rate if states_times(container) else stream.guessed_rate
    return Fraction(rate.numerator, rate.denominator) if rate else Fraction(0)


def restarts_clocks(container: InputContainer) -> bool:
    """Return True if the format allows clocks that restart, such as MPEG-TS, MPEG-PS, FLV and Ogg."""
    flags: Any = container.format.flags
    return bool(flags & FormatFlags.ts_discont.value)


def states_times(container: InputContainer) -> bool:
    """Return False for formats without any times, such as raw H.264: only a frame rate says when a frame is shown."""
    flags: Any = container.format.flags
    return not flags & FormatFlags.no_timestamps.value


def begins_anywhere(container: InputContainer) -> bool:
    """Return True for formats that may begin with any packet, not only with a key frame."""
    return restarts_clocks(container) or not states_times(container) or container.format.name == "rtsp"


def display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    """Return the matrix by which a viewer turns and mirrors the frame: int32 (3, 3); None if there is none."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)


def container_crop(container: InputContainer, stream: VideoStream) -> tuple[int, int, int, int]:
    """Return how many pixels the container hides at the left, right, top and bottom of each frame.

    Matroska calls these PixelCrop, mp4 calls what remains the clean aperture. PyAV shows them only in FFmpeg's
    description of the file.
    """
    level, described = av.logging.get_level(), cast(Any, container)
    av.logging.set_level(av.logging.INFO)
    try:
        lines = described.dumps_format().splitlines()
    finally:
        av.logging.set_level(level)
    here = False
    for line in lines:
        if head := re.match(r"  Stream #\d+:(\d+)", line):
            here = int(head[1]) == stream.index
        elif here and (crop := re.match(r" +Frame [Cc]ropping: (\d+)/(\d+)/(\d+)/(\d+)$", line)):
            left, right, top, bottom = map(int, crop.groups())
            return left, right, top, bottom
    return 0, 0, 0, 0


def error_text(error: Exception) -> str:
    """Return a decoder's own words for its error."""
    if isinstance(error, av.ExitError):
        return f"finding its next part takes more than {OPENING:.0f} s"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def raise_if_out_of_memory(error: Exception) -> None:
    """Raise MemoryError if FFmpeg reports ENOMEM: the memory limit is the cause, not a damaged file."""
    if getattr(error, "errno", None) == errno.ENOMEM:
        raise MemoryError(str(error)) from error


def raise_if_too_large(path: Path, packet: Packet | None, error: Exception) -> None:
    """Raise MediaError if a packet's frame, which could not be decoded, has more pixels than limits() allows."""
    if packet is None or getattr(error, "errno", None) != errno.EINVAL:
        return
    if any("max pixel count" in message for _, message in _log(packet.decode)):
        reason = f"it holds a frame of more than {limits().megapixels:g} megapixels"
        raise MediaError(path, reason, raise_limit("megapixels")) from error

"""Read the frames of one video or image, resized and cropped for the vision encoder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ma2mba.video.decode import decode_video
from ma2mba.video.pictures import IMAGE_SUFFIXES, clip_view, read_image


@dataclass(frozen=True)
class FrameSet:
    """`frames_NHWC`: uint8 RGB. `duration`: length of the whole video in seconds, 0 for an image."""

    frames_NHWC: np.ndarray
    duration: float


def read_frames(
    path: Path | str,
    image_size: int,
    *,
    fps: float = 1.0,
    count: int | None = None,
    start: float | None = None,
    stop: float | None = None,
) -> FrameSet:
    """Return the frames shown in [start, stop) seconds, sampled at `fps`; an image is one frame.

    With `count`, return only that many of these frames, evenly spaced. Each frame is resized and cropped as CLIP does,
    to (image_size, image_size). Raise MediaError if the file is missing, damaged or not a video, or has no frame in
    the range.
    """
    path = Path(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return FrameSet(clip_view(read_image(path), image_size)[None], 0.0)
    decoded = decode_video(path, lambda p: clip_view(p, image_size), fps=fps, count=count, start=start, stop=stop)
    return FrameSet(np.stack([sample.value for sample in decoded.samples]), decoded.duration)

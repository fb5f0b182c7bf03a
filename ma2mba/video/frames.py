"""The one door to a video's frames as the vision encoder wants them, for asking and evaluating."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ma2mba.video.decode import decode_video
from ma2mba.video.pictures import IMAGE_SUFFIXES, clip_view, read_image


@dataclass(frozen=True)
class FrameSet:
    """frames_NHWC uint8 RGB; timestamps_N float64, seconds from the start; duration in seconds (0 for an image).

    `source_pts_N` are the times, in seconds, since which each frame was shown.
    """

    frames_NHWC: np.ndarray
    timestamps_N: np.ndarray
    source_pts_N: np.ndarray
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
    """The frames of [start, stop) s at `fps`, or `count` of those spread evenly; an image is one frame at 0 s.

    Each is resized and cropped as CLIP does to (image_size, image_size). Raises MediaError (a UserError) naming the
    file when it is missing, broken, damaged, not a video, or has no frame in the range.
    """
    path = Path(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        picture = clip_view(read_image(path), image_size)
        return FrameSet(picture[None], np.zeros(1), np.zeros(1), 0.0)
    decoded = decode_video(path, lambda p: clip_view(p, image_size), fps=fps, count=count, start=start, stop=stop)
    frames = np.stack([sample.value for sample in decoded.samples])
    times = np.array([sample.t for sample in decoded.samples])
    return FrameSet(frames, times, np.array([sample.pts for sample in decoded.samples]), decoded.duration)

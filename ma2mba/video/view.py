"""Turn a decoded frame into the picture that a viewer sees: cropped, turned and mirrored as the file says."""

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ma2mba.video.errors import MediaError
from ma2mba.video.pyav import (
    SINGLE_THREAD,
    container_crop,
    display_matrix,
    error_text,
    raise_if_out_of_memory,
)

SMALL = 0.017
"""The sine of one degree."""


@dataclass
class View:
    """What the container says of the pictures of one stream.

    `crop`: pixels hidden at the left, right, top and bottom. `ignored`: what is said and not applied ("" if nothing).
    """

    path: Path
    crop: tuple[int, int, int, int]
    ignored: str
    reformatter: VideoReformatter

    def picture(self, frame: av.VideoFrame) -> np.ndarray:
        """Return a frame as RGB uint8 (H, W, 3), cropped, turned and mirrored. Raise MediaError if it is impossible."""
        try:
            picture = self.reformatter.reformat(frame, format="rgb24", **SINGLE_THREAD).to_ndarray()
        except av.FFmpegError as error:
            raise_if_out_of_memory(error)
            raise MediaError(self.path, f"cannot be converted to RGB ({error_text(error)})") from error
        return np.ascontiguousarray(self._turned(self._cropped(picture), display_matrix(frame)))

    def changes(self, frame: av.VideoFrame | None) -> bool:
        """Return True if the frame is cropped or mirrored."""
        matrix = display_matrix(frame) if frame is not None else None
        mirrored = matrix is not None and np.linalg.det(matrix[:2, :2].astype(np.float64)) < 0
        return any(self.crop) or mirrored

    def _cropped(self, picture: np.ndarray) -> np.ndarray:
        left, right, top, bottom = self.crop
        height, width = picture.shape[:2]
        if left + right >= width or top + bottom >= height:
            raise MediaError(self.path, f"its container crops a frame of {width} x {height} to nothing")
        return picture[top : height - bottom, left : width - right]

    def _turned(self, picture: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
        if matrix is None:
            return picture
        turned = upright(picture, matrix)
        if turned is None:
            self.ignored = f"the display matrix {matrix[:2, :2].ravel().tolist()} is not applied"
            return picture
        return turned


def view_of(path: Path, container: InputContainer, stream: VideoStream) -> View:
    """Return what a file's container says of its pictures."""
    ratio = stream.sample_aspect_ratio
    ignored = ""
    if ratio and ratio.numerator > 0 and ratio.numerator != ratio.denominator:
        ignored = f"pixels of {ratio.numerator}:{ratio.denominator} are taken as square"
    return View(path, container_crop(container, stream), ignored, VideoReformatter())


def upright(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray | None:
    """Apply a display matrix, int32 (3, 3), to (H, W, 3); return None unless it consists of quarter turns and mirrors.

    The matrix maps a pixel at (x, y) to (a x + c y, b x + d y). Its scale, and angles below one degree, are ignored.
    """
    flat = matrix[:2, :2].astype(np.float64)
    largest = np.abs(flat).max()
    if not largest:
        return picture
    (a, b), (c, d) = np.where(np.abs(flat) < SMALL * largest, 0, flat)
    if a and d and not b and not c:
        across, down = a, d
    elif b and c and not a and not d:
        picture, across, down = picture.transpose(1, 0, 2), c, b
    else:
        return None
    return picture[:: 1 if down > 0 else -1, :: 1 if across > 0 else -1]

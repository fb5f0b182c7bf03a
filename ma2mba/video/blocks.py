"""Read the frames of one video or picture in this process, resized and cropped for the vision encoder.

`frames.py` does it in a watched worker process. A model folder has a copy of this file.

M pictures, N frames, C colours, H and W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ma2mba.errors import UserError
from ma2mba.limits import limits, raise_limit
from ma2mba.video.animation import is_animation
from ma2mba.video.decode import Plan, decode_video
from ma2mba.video.errors import MediaError
from ma2mba.video.messages import Block, Request
from ma2mba.video.pictures import IMAGE_SUFFIXES, clip_view, read_image

GB = 1e9
BLOCK_BYTES = 1 << 20
"""Bytes of pictures that are passed on at once."""


@dataclass(frozen=True)
class FrameSet:
    """The sampled frames: frame n is picture `shown_N[n]` of `pictures_MCHW`, uint8 RGB.

    A picture that is shown for many seconds is held once. `duration`: length of the whole video in seconds, 0 for an
    image.
    """

    pictures_MCHW: np.ndarray
    shown_N: np.ndarray
    duration: float

    @property
    def frames_NHWC(self) -> np.ndarray:
        """All frames, uint8 RGB: a copy of its picture for each."""
        return np.ascontiguousarray(self.pictures_MCHW.transpose(0, 2, 3, 1)[self.shown_N])


def read_frames(
    path: Path | str,
    image_size: int,
    *,
    fps: float = 1.0,
    count: int | None = None,
    start: float | None = None,
    stop: float | None = None,
) -> FrameSet:
    """Return the frames shown in [start, stop) seconds, sampled at `fps`; a still image is one frame.

    With `count`, return only that many of these frames, evenly spaced. Each frame is resized and cropped as CLIP does,
    to (image_size, image_size). Raise UserError if the file is missing, damaged or not a video, if it has no frame in
    the range, or if its frames exceed `limits().frames_gb`.
    """
    held: list[Pictures] = []

    def hand_on(item: Plan | Block) -> None:
        if isinstance(item, Plan):
            held[:] = [Pictures(item)]
        else:
            held[0].add(item)

    read_blocks(Request(Path(path), image_size, fps, count, start, stop), hand_on, lambda: None)
    return held[0].frame_set()


def read_blocks(request: Request, hand_on: Callable[[Plan | Block], None], beat: Callable[[], None]) -> None:
    """Pass the plan to `hand_on`, then all pictures in blocks."""
    blocks = Blocks(request, hand_on)
    if request.path.suffix.lower() in IMAGE_SUFFIXES and not is_animation(request.path):
        picture, damage = read_image(request.path), ""
        blocks.announce(Plan(np.zeros(1), np.zeros(1, np.int64), 0.0))
        blocks.add(picture)
    else:
        decoded = decode_video(
            request.path,
            blocks.add,
            fps=request.fps,
            count=request.count,
            start=request.start,
            stop=request.stop,
            seek=request.seek,
            divide=request.workers > 1,
            keep_damaged=request.keep_damaged,
            beat=beat,
            announce=blocks.announce,
        )
        damage, intact = decoded.damage, {sample.index for sample in decoded.samples}
    blocks.hand_on_rest()
    if damage and len(intact) < blocks.sent:  # they were counted as if none was missing
        raise UserError(f"{request.path}: {damage}, and frames before it are missing. Use a complete, readable file")
    if damage:
        raise MediaError(request.path, damage, partial=decoded.samples[-1].t)


class Blocks:
    """Resizes pictures and passes them on in blocks of BLOCK_BYTES."""

    def __init__(self, request: Request, hand_on: Callable[[Plan | Block], None]):
        self._request, self._hand_on = request, hand_on
        self._shape = (3, request.image_size, request.image_size)
        self._first = self._filled = 0

    def announce(self, plan: Plan) -> None:
        """Pass the plan on, and begin with its first picture. Raise UserError if they exceed the limit."""
        each, most = int(np.prod(self._shape)), limits().frames_gb * GB
        if self._request.held and plan.pictures * each > most:
            raise MediaError(
                self._request.path,
                f"its {plan.pictures:,} different frames need {plan.pictures * each / GB:.3g} GB at "
                f"{self._request.image_size} pixels, and {most / GB:g} GB are allowed",
                f"Use --frames N, with at most {int(most // each):,}. {raise_limit('frames_gb')}",
            )
        self.begin(0, plan.pictures)
        self._hand_on(plan)

    def begin(self, first: int, stop: int) -> None:
        """Begin with picture `first` of those before `stop`."""
        self._first, self._filled = first, 0
        each = int(np.prod(self._shape))
        self._buffer = np.empty((min(stop - first, max(1, BLOCK_BYTES // each)), *self._shape), np.uint8)

    def add(self, picture: np.ndarray) -> None:
        """Add a picture, uint8 (H, W, 3)."""
        self._buffer[self._filled] = clip_view(picture, self._request.image_size).transpose(2, 0, 1)
        self._filled += 1
        if self._filled == len(self._buffer):
            self.hand_on_rest()

    @property
    def sent(self) -> int:
        """The number of pictures that were passed on."""
        return self._first

    def hand_on_rest(self) -> None:
        if self._filled:
            self._hand_on(Block(self._first, self._buffer[: self._filled]))
            self._first += self._filled
            self._filled = 0


class Pictures:
    """Joins the blocks of a plan in one array, which is allocated at the first block."""

    def __init__(self, plan: Plan):
        self._plan = plan

    def add(self, block: Block) -> None:
        if block.first == 0:
            self._pictures_MCHW = np.empty((self._plan.pictures, *block.pictures_MCHW.shape[1:]), np.uint8)
        self._pictures_MCHW[block.first : block.first + len(block.pictures_MCHW)] = block.pictures_MCHW

    def frame_set(self) -> FrameSet:
        return FrameSet(self._pictures_MCHW, self._plan.shown_N, self._plan.duration)

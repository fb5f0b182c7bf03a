"""Read the frames of one video or picture, resized and cropped for the vision encoder.

`FrameReader` reads in a watched worker process: a file that hangs or crashes its decoder, or that needs too much
memory, raises UserError. `read_frames` reads in this process.

M pictures, N frames, C colours, H and W pixels.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ma2mba.errors import UserError
from ma2mba.limits import limits, raise_limit
from ma2mba.video.animation import is_animation
from ma2mba.video.decode import decode_video
from ma2mba.video.errors import MediaError
from ma2mba.video.pictures import IMAGE_SUFFIXES, clip_view, read_image
from ma2mba.video.pool import Beat, Pool, Task

GB = 1e9
BLOCK_BYTES = 8 << 20


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


@dataclass(frozen=True)
class Request:
    """What to read. A relative `path` counts from `folder`."""

    path: Path
    image_size: int
    fps: float = 1.0
    count: int | None = None
    start: float | None = None
    stop: float | None = None
    folder: str = "."


@dataclass(frozen=True)
class Block:
    """Pictures `first`, `first` + 1, ... of `total`, in the order in which they are decoded."""

    first: int
    total: int
    pictures_MCHW: np.ndarray


class FrameReader:
    """Reads videos and pictures, one after the other, in a worker process that stays until `close`.

    The worker starts at once, so a caller that creates the reader early need not wait for it.
    """

    def __init__(self) -> None:
        self._pool = Pool(read_item, 1, int(limits().decoder_gb * GB))

    def __enter__(self) -> "FrameReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.close()

    def read(self, path: Path | str, image_size: int, *, count: int | None = None) -> FrameSet:
        """Return what `read_frames` returns. Raise UserError too if decoding hangs, crashes or exceeds a limit."""
        path = Path(path)
        folder = "." if path.is_absolute() else os.getcwd()
        task = Task(0, [Request(path, image_size, count=count, folder=folder)])
        held, results = _Pictures(), list[tuple[np.ndarray, float] | UserError]()
        stall = limits().stall_seconds
        try:
            self._pool.run([task], lambda _, result: results.append(result), on_block=held.add, stall=stall)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except MemoryError as error:
            raise MediaError(path, "its frames need more memory than is free", "Use --frames N") from error
        if isinstance(results[0], UserError):
            raise results[0]
        return FrameSet(held.pictures_MCHW, *results[0])


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
    held = _Pictures()
    shown_N, duration = _read(Request(Path(path), image_size, fps, count, start, stop), held.add, lambda: None)
    return FrameSet(held.pictures_MCHW, shown_N, duration)


def read_item(task: Task, begin: Callable[[int], None], beat: Beat) -> tuple[np.ndarray, float] | UserError:
    """Read the one Request of a task in a worker and send its pictures in blocks.

    Return `shown_N` and the duration of the video, or the reason why the file cannot be used.
    """
    request: Request = task.items[0]
    begin(0)
    try:
        if task.given_up:
            raise MediaError(request.path, task.given_up[0])
        os.chdir(request.folder)
        return _read(request, beat, beat)
    except UserError as error:
        return error
    except MemoryError:
        reason = f"decoding it takes more than {limits().decoder_gb:g} GB of memory"
        return MediaError(request.path, reason, raise_limit("decoder_gb"))
    except Exception as error:  # the last guard: whatever a library raises for a file must not end an evaluation
        return MediaError(request.path, f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())})")
    finally:
        begin(1)


def _read(request: Request, hand_on: Callable[[Block], None], beat: Callable[[], None]) -> tuple[np.ndarray, float]:
    """Pass all pictures to `hand_on`, in blocks. Return `shown_N` and the duration of the video."""
    blocks = _Blocks(request, hand_on)
    if request.path.suffix.lower() in IMAGE_SUFFIXES and not is_animation(request.path):
        blocks.expect(1)
        shown, duration = [blocks.add(read_image(request.path))], 0.0
    else:
        decoded = decode_video(
            request.path,
            blocks.add,
            fps=request.fps,
            count=request.count,
            start=request.start,
            stop=request.stop,
            beat=beat,
            expect=blocks.expect,
        )
        shown, duration = [sample.value for sample in decoded.samples], decoded.duration
    blocks.hand_on_rest()
    return np.array(shown, np.int64), duration


class _Blocks:
    """Resizes pictures and passes them on in blocks of BLOCK_BYTES."""

    def __init__(self, request: Request, hand_on: Callable[[Block], None]):
        self._request, self._hand_on = request, hand_on
        self._shape = (3, request.image_size, request.image_size)
        self._total = self._first = self._filled = 0

    def expect(self, total: int) -> None:
        """Announce the number of pictures, and begin with the first. Raise UserError if they exceed the limit."""
        each, most = int(np.prod(self._shape)), limits().frames_gb * GB
        if total * each > most:
            raise MediaError(
                self._request.path,
                f"its {total:,} different frames need {total * each / GB:.3g} GB at {self._request.image_size} pixels, "
                f"and {most / GB:g} GB are allowed",
                f"Use --frames N, with at most {int(most // each):,}. {raise_limit('frames_gb')}",
            )
        self._total, self._first, self._filled = total, 0, 0
        self._buffer = np.empty((min(total, max(1, BLOCK_BYTES // each)), *self._shape), np.uint8)

    def add(self, picture: np.ndarray) -> int:
        """Add a picture, uint8 (H, W, 3), and return its number."""
        self._buffer[self._filled] = clip_view(picture, self._request.image_size).transpose(2, 0, 1)
        self._filled += 1
        number = self._first + self._filled - 1
        if self._filled == len(self._buffer):
            self.hand_on_rest()
        return number

    def hand_on_rest(self) -> None:
        if self._filled:
            self._hand_on(Block(self._first, self._total, self._buffer[: self._filled]))
            self._first += self._filled
            self._filled = 0


class _Pictures:
    """Joins blocks in one array, which is allocated at the first block. Blocks that come again replace the earlier."""

    def add(self, block: Block) -> None:
        if block.first == 0:
            self.pictures_MCHW = np.empty((block.total, *block.pictures_MCHW.shape[1:]), np.uint8)
        self.pictures_MCHW[block.first : block.first + len(block.pictures_MCHW)] = block.pictures_MCHW

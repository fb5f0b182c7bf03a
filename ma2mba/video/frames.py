"""Read the frames of one video or picture, resized and cropped for the vision encoder.

`FrameReader` reads in a watched worker process: a file that hangs or crashes its decoder, or that needs too much
memory, raises UserError. `FrameReader.stream` gives the pictures one block after the other, in memory that does not
grow with the video; `FrameReader.read` holds all of them. `read_frames` reads in this process, and holds them too.

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
from ma2mba.video.decode import Plan, decode_video
from ma2mba.video.errors import MediaError
from ma2mba.video.messages import Block, Joint, Piece, Request
from ma2mba.video.picture_folder import read_picture_folder
from ma2mba.video.pictures import IMAGE_SUFFIXES, clip_view, read_image
from ma2mba.video.pieces import digest_of
from ma2mba.video.pool import Beat, Pool, Task
from ma2mba.video.seek import Divided, Doubt, open_at
from ma2mba.video.stream import StartAgain, VideoStream

GB = 1e9
MOST_WORKERS = 8
"""Processes that decode one video at most."""
BLOCK_BYTES = 1 << 20
"""Bytes of pictures that a worker sends at once."""


@dataclass(frozen=True)
class Window:
    """The seconds [start, stop) of a video; None: from its beginning, to its end.

    With `picture_rate`, the video is a folder of pictures in the order of their names, so many per second.
    """

    start: float | None = None
    stop: float | None = None
    picture_rate: float | None = None


WHOLE = Window()


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

    def stream(
        self,
        path: Path | str,
        image_size: int,
        *,
        count: int | None = None,
        keep_damaged: bool = False,
        window: Window = WHOLE,
    ) -> VideoStream:
        """Return a stream of the pictures of the seconds `window`, as `read` returns them. Decoding starts at once.

        One stream at a time: close it before the next. Errors are raised when the stream is read. With `keep_damaged`,
        the stream of a damaged video ends after its last intact picture, and its `damage` says why.
        """
        return self._stream(Path(path), image_size, count, held=False, keep_damaged=keep_damaged, window=window)

    def read(self, path: Path | str, image_size: int, *, count: int | None = None) -> FrameSet:
        """Return what `read_frames` returns. Raise UserError too if decoding hangs, crashes or exceeds a limit."""
        path = Path(path)
        try:
            with self._stream(path, image_size, count, held=True) as stream:
                return _held(stream)
        except MemoryError as error:
            raise MediaError(path, "its frames need more memory than is free", "Use --frames N") from error

    def _stream(
        self,
        path: Path,
        image_size: int,
        count: int | None,
        *,
        held: bool,
        keep_damaged: bool = False,
        window: Window = WHOLE,
    ) -> VideoStream:
        folder = "." if path.is_absolute() else os.getcwd()
        workers = min(MOST_WORKERS, len(os.sched_getaffinity(0)))
        request = Request(
            path,
            image_size,
            count=count,
            start=window.start,
            stop=window.stop,
            picture_rate=window.picture_rate,
            folder=folder,
            held=held,
            keep_damaged=keep_damaged,
            workers=workers,
        )
        return VideoStream(request, self._pool, limits().stall_seconds)


def _held(stream: VideoStream) -> FrameSet:
    """Read a stream to its end and return all its frames."""
    while True:
        held = _Pictures(stream.plan)
        try:
            for block in stream:
                held.add(block)
        except StartAgain:
            continue
        return held.frame_set()


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
    held: list[_Pictures] = []

    def hand_on(item: Plan | Block) -> None:
        if isinstance(item, Plan):
            held[:] = [_Pictures(item)]
        else:
            held[0].add(item)

    _read(Request(Path(path), image_size, fps, count, start, stop), hand_on, lambda: None)
    return held[0].frame_set()


def read_item(task: Task, begin: Callable[[int], None], beat: Beat) -> UserError | Divided | Doubt | Joint | None:
    """Read the one Request of a task in a worker. Send its plan, then its pictures in blocks.

    If the file must be decoded again, send the plan again, and all pictures. Return the reason why the file cannot be
    used, or None. If several workers should decode it, return Divided after the plan. Of a Piece, send the pictures,
    and return its Joint, or Doubt.
    """
    piece = task.items[0] if isinstance(task.items[0], Piece) else None
    request: Request = piece.request if piece else task.items[0]
    begin(0)
    try:
        if task.given_up:
            raise MediaError(request.path, task.given_up[0])
        os.chdir(request.folder)
        if piece:
            return _read_piece(piece, beat)
        _read(request, beat, beat)
        return None
    except (UserError, Divided, Doubt) as error:
        return error
    except MemoryError:
        reason = f"decoding it takes more than {limits().decoder_gb:g} GB of memory"
        return MediaError(request.path, reason, raise_limit("decoder_gb"))
    except Exception as error:  # the last guard: whatever a library raises for a file must not end an evaluation
        return MediaError(request.path, f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())})")
    finally:
        begin(1)


def _read(request: Request, hand_on: Callable[[Plan | Block], None], beat: Callable[[], None]) -> None:
    """Pass the plan to `hand_on`, then all pictures in blocks."""
    blocks = _Blocks(request, hand_on)
    if request.picture_rate:
        damage = ""
        read_picture_folder(request, blocks.add, beat, blocks.announce)
    elif request.path.suffix.lower() in IMAGE_SUFFIXES and not is_animation(request.path):
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


def _read_piece(piece: Piece, beat: Beat) -> Joint:
    """Send all pictures of a piece in blocks. Raise Doubt if it cannot be decoded by itself."""
    blocks, digest, turned = _Blocks(piece.request, beat), b"", set()
    blocks.begin(piece.first, piece.stop)
    with open_at(piece.request.path, beat) as video:
        for number, (picture, matrix) in enumerate(video.frames(piece.stretch), piece.first):
            turned.add(matrix)
            if number < piece.stop:
                blocks.add(picture)
            else:
                digest = digest_of(clip_view(picture, piece.request.image_size).transpose(2, 0, 1))
    blocks.hand_on_rest()
    return Joint(digest, frozenset(turned))


class _Blocks:
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


class _Pictures:
    """Joins the blocks of a plan in one array, which is allocated at the first block."""

    def __init__(self, plan: Plan):
        self._plan = plan

    def add(self, block: Block) -> None:
        if block.first == 0:
            self._pictures_MCHW = np.empty((self._plan.pictures, *block.pictures_MCHW.shape[1:]), np.uint8)
        self._pictures_MCHW[block.first : block.first + len(block.pictures_MCHW)] = block.pictures_MCHW

    def frame_set(self) -> FrameSet:
        return FrameSet(self._pictures_MCHW, self._plan.shown_N, self._plan.duration)

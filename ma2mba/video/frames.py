"""Read the frames of one video or picture in a watched worker process.

A file that hangs or crashes its decoder, or that needs too much memory, raises UserError. `FrameReader.stream` gives
the pictures one block after the other, in memory that does not grow with the video; `FrameReader.read` holds all of
them. `blocks.read_frames` reads in this process.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ma2mba.errors import UserError
from ma2mba.limits import limits, raise_limit
from ma2mba.video.blocks import GB, Blocks, FrameSet, Pictures, read_blocks
from ma2mba.video.decode import Plan
from ma2mba.video.errors import MediaError, file_state
from ma2mba.video.messages import Block, Joint, Piece, Request
from ma2mba.video.picture_folder import read_picture_folder
from ma2mba.video.pictures import clip_view
from ma2mba.video.pieces import digest_of
from ma2mba.video.pool import Beat, Pool, Task
from ma2mba.video.seek import Divided, Doubt, open_at
from ma2mba.video.stream import StartAgain, VideoStream

MOST_WORKERS = 16
"""Processes that decode one video at most."""


@dataclass(frozen=True)
class Window:
    """The seconds [start, stop) of a video; None: from its beginning, to its end.

    With `picture_rate`, the video is a folder of pictures in the order of their names, so many per second.
    """

    start: float | None = None
    stop: float | None = None
    picture_rate: float | None = None


WHOLE = Window()


class FrameReader:
    """Reads videos and pictures, one after the other, in a worker process that stays until `close`.

    The worker starts at once, so a caller that creates the reader early need not wait for it.
    """

    def __init__(self) -> None:
        self._pool = Pool(read_item, 1, int(limits().decoder_gb * GB))
        self._begun: tuple[VideoStream, tuple[int, ...]] | None = None

    def __enter__(self) -> "FrameReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.close()

    def begin(self, path: Path | str, image_size: int, *, count: int | None = None) -> None:
        """Let the worker begin with a video before `stream` is called with the same arguments."""
        written = file_state(Path(path))
        self._begun = self.stream(path, image_size, count=count), written

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
        except UserError:  # also OverMemory, which is a MemoryError
            raise
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
        if self._begun:
            (begun, written), self._begun = self._begun, None
            if begun.request == request and file_state(path) == written:
                return begun
            begun.close()
        return VideoStream(request, self._pool, limits().stall_seconds)


def _held(stream: VideoStream) -> FrameSet:
    """Read a stream to its end and return all its frames."""
    while True:
        held = Pictures(stream.plan)
        try:
            for block in stream:
                held.add(block)
        except StartAgain:
            continue
        return held.frame_set()


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
    if not request.picture_rate:
        read_blocks(request, hand_on, beat)
        return
    blocks = Blocks(request, hand_on)
    read_picture_folder(request, blocks.add, beat, blocks.announce)
    blocks.hand_on_rest()


def _read_piece(piece: Piece, beat: Beat) -> Joint:
    """Send all pictures of a piece in blocks. Raise Doubt if it cannot be decoded by itself."""
    blocks, digest, turned = Blocks(piece.request, beat), b"", set()
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

"""Decodes a medium in a watched worker process, one chunk ahead of the model. The model's thread never waits."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ma2mba.inference.interleaved import Interleaved
from ma2mba.inference.session import Session
from ma2mba.inference.watch import Chunk, chunks_of
from ma2mba.model.encoded import Encoded
from ma2mba.video.decode import Plan
from ma2mba.video.errors import MediaError, file_state
from ma2mba.video.frames import FrameReader
from ma2mba.video.stream import Cancelled, StartAgain, VideoStream

LONG = 600.0
"""Seconds of a video for which more than one process may decode. They are ended after it."""


@dataclass(frozen=True)
class Opened:
    """What is going to be read. It comes again if the file must be decoded again: what came before does not count."""

    plan: Plan
    sequence: Interleaved


@dataclass(frozen=True)
class Ended:
    """Nothing follows. `error`: why the medium cannot be used; None if all was given."""

    error: BaseException | None


Item = Opened | Chunk | Ended


class FramesAhead:
    """A medium's chunks, made by a thread: the next one while the model reads the one before."""

    def __init__(self, frames: FrameReader | None, session: Session, before: tuple[int, ...], path: Path):
        """`session` gives model and chunk length; it is not changed. `before`: the tokens before the first frame.

        Without `frames`, the thread starts a worker process. `frames` may be used again when the thread has ended.
        """
        self.frames, self._session, self._before, self._path = frames, session, before, path
        self._made: deque[Item] = deque()
        self._taken = threading.Semaphore(0)
        self._stream: VideoStream | None = None
        self._lock, self._cancelled = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, name="frames-ahead", daemon=True)

    def start(self, wake: Callable[[], None]) -> None:
        """Begin. `wake` is called in the thread whenever there is something to take."""
        self._wake = wake
        self._thread.start()

    def take(self) -> Item | None:
        """Return what comes next, None if it is not ready yet."""
        if not self._made:
            return None
        self._taken.release()
        return self._made.popleft()

    def cancel(self) -> None:
        """Let the thread end within a second or so. It then gives Ended."""
        with self._lock:
            self._cancelled = True
            if self._stream:
                self._stream.cancel()
        self._taken.release()

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._read()
        except BaseException as caught:  # whatever happens here is told where the medium is waited for
            error = caught
        self._made.append(Ended(error))
        self._wake()

    def _read(self) -> None:
        state, size = file_state(self._path), self._session.model.config.image_size
        self.frames = frames = self.frames or FrameReader()
        with frames.stream(self._path, size) as stream:
            with self._lock:
                self._stream = stream
                if self._cancelled:
                    stream.cancel()
            while True:
                try:
                    self._give_all(stream)
                    break
                except StartAgain:
                    continue
            duration = stream.duration
        if file_state(self._path) != state:
            raise MediaError(self._path, "changed while it was read", "Send it again")
        if duration > LONG:
            frames.close()

    def _give_all(self, stream: VideoStream) -> None:
        shown_N, before = stream.shown_N, len(self._before)
        encoded = Encoded(list(self._before), frame_positions=[before] * len(shown_N))
        sequence = Interleaved(encoded, self._session.model.config.tokens_per_frame, shown_N)
        self._give(Opened(stream.plan, sequence))
        for chunk in chunks_of(self._session, sequence, stream):
            self._give(chunk)

    def _give(self, item: Item) -> None:
        """Hand an item on, and wait until it is taken."""
        self._made.append(item)
        self._wake()
        self._taken.acquire()
        if self._cancelled:
            raise Cancelled

"""Watch a source while it comes, in a thread, and answer about what was seen so far.

Frames are read in chunks at the same boundaries as of a video file, so the states have the same bits. A question is
asked from a fork that has also read the frames of the chunk that is not full yet. Questions and answers do not become
part of what is watched: in training, frames come before the first question.

M pictures, C colours, H and W pixels.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from ma2mba.errors import UserError
from ma2mba.inference.chat import ONE_A_SECOND, VideoChat
from ma2mba.inference.interleaved import Interleaved
from ma2mba.inference.session import Session, within
from ma2mba.inference.state_file import Watched
from ma2mba.model.conversation import Encoded
from ma2mba.video.errors import MediaError
from ma2mba.video.live import LiveStream, Notice, Picture
from ma2mba.video.stream import Cancelled

BEHIND = 30.0
"""Seconds behind the source from which on this is told, and again whenever they double."""


@dataclass(frozen=True)
class Seen:
    """A session, and the text and the frames that follow and do not fill a chunk.

    Frame n after `session` shows picture `shown[n]` of `pictures`, uint8 (C, H, W). `done`: tokens of these that
    `session` has read already, where a chunk ends within them. `frames` counts all.
    """

    session: Session
    text: tuple[int, ...]
    pictures: tuple[np.ndarray, ...] = ()
    shown: tuple[int, ...] = ()
    done: int = 0
    frames: int = 0

    def add(self, picture_CHW: np.ndarray, *, again: bool = False) -> "Seen":
        """Return what is seen with one more frame. With `again`, it shows the same picture as the frame before."""
        if not again or not self.pictures:
            return replace(
                self,
                pictures=(*self.pictures, picture_CHW),
                shown=(*self.shown, len(self.pictures)),
                frames=self.frames + 1,
            )
        return replace(self, shown=(*self.shown, len(self.pictures) - 1), frames=self.frames + 1)

    @property
    def full(self) -> bool:
        """True if the end of the next chunk is certain: more tokens follow it."""
        return self._sequence().tokens - self.done > self.session.chunk_tokens

    def read(self) -> "Seen":
        """Return what is seen after the session has read the next chunk. `self` does not change."""
        sequence, per_frame = self._sequence(), self.session.model.config.tokens_per_frame
        stop = sequence.next_stop(self.done, self.session.chunk_tokens)
        session = self.session.fork()
        ids_S, visual_S = sequence.part(self.done, stop)
        visual_S, pictures_M = within(visual_S, per_frame)
        some = [torch.from_numpy(self.pictures[number]) for number in pictures_M.tolist()]
        session.read_chunk(ids_S, visual_S, torch.stack(some) if some else session.no_frames())
        whole = sequence.frames_before(stop)
        kept = self.shown[whole:]
        first = kept[0] if kept else len(self.pictures) - 1  # the last picture may be shown again
        rest = stop - len(self.text) - whole * per_frame
        return replace(
            self,
            session=session,
            text=self.text if rest < 0 else (),
            pictures=self.pictures[first:],
            shown=tuple(number - first for number in kept),
            done=stop if rest < 0 else rest,
        )

    def all_read(self) -> Session:
        """Return a session that has read everything that is seen."""
        seen = self
        while seen._sequence().tokens > seen.done:
            seen = seen.read()
        return seen.session

    def _sequence(self) -> Interleaved:
        text = Encoded(list(self.text), frame_positions=[len(self.text)] * len(self.shown))
        return Interleaved(text, self.session.model.config.tokens_per_frame, np.array(self.shown, np.int64))


class LiveWatch:
    """Watches a stream in a thread. Use as a context manager.

    `tell` is called in the thread with what a viewer should know, one line at a time. Memory does not grow with the
    length of the stream: pictures wait here for one chunk at most, and then the stream waits.
    """

    def __init__(self, chat: VideoChat, stream: LiveStream, tell: Callable[[str], None]):
        self._chat, self._stream, self._tell = chat, stream, tell
        session, before = chat.before_video()
        self._seen = Seen(session, tuple(before))
        self._model, self._may_read = threading.Lock(), threading.Event()
        self._may_read.set()
        self._any, self._damage = threading.Event(), ""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)
        self.behind, self._told = 0.0, BEHIND / 2

    def __enter__(self) -> "LiveWatch":
        self._stream.begin(self._chat.model.config.image_size)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.cancel()
        self._may_read.set()
        self._thread.join()

    def wait(self) -> None:
        """Wait for the first frame. Raise UserError if the source gives none."""
        self._any.wait()
        if self._error:
            raise self._error

    def wait_for_end(self) -> None:
        """Wait until no more frames come."""
        self._thread.join()

    @property
    def ended(self) -> bool:
        """True if no more frames come."""
        return not self._thread.is_alive()

    @contextmanager
    def so_far(self) -> Iterator[VideoChat]:
        """Give a chat that has watched all frames so far. The model reads no further frames in the block.

        Raise UserError if there is no frame.
        """
        self.wait()
        self._may_read.clear()
        try:
            with self._model:
                seen = self._seen
                yield self._chat.after_video(seen.all_read(), self._watched(seen))
        finally:
            self._may_read.set()

    def _watched(self, seen: Seen) -> Watched:
        return Watched(
            name=self._stream.label,
            content=None,
            seconds=float(seen.frames),
            frames=seen.frames,
            sampling=ONE_A_SECOND,
            partial=float(seen.frames) if self._damage else None,
            damage=self._damage,
            live=True,
        )

    def _run(self) -> None:
        try:
            self._read_stream()
        except Cancelled:
            pass
        except UserError as error:
            if self._seen.frames:  # what was seen stays
                self._damage = error.reason if isinstance(error, MediaError) else str(error)
                self._tell(f"ended after {self._seen.frames:,} s: {self._damage}")
            else:
                self._error = error
        except BaseException as error:
            self._error = error
        finally:
            self._any.set()

    def _read_stream(self) -> None:
        for item in self._stream:
            if isinstance(item, Notice):
                self._tell(item.text)
            else:
                self._take(item)
        assert self._stream.ended
        self._damage = self._stream.ended.damage
        self._tell(f"ended after {self._seen.frames:,} s: {self._stream.ended.reason}")

    def _take(self, item: Picture) -> None:
        self._lag(time.monotonic() - item.due)
        for number in range(item.count):
            self._seen = self._seen.add(item.picture_CHW, again=number > 0)
            self._any.set()
            while self._seen.full:
                self._may_read.wait()
                with self._model:
                    self._seen = self._seen.read()

    def _lag(self, behind: float) -> None:
        """Note how far the watching is behind the source. Say so if it is much, and whenever it has doubled."""
        self.behind = max(behind, 0.0)
        if self.behind < BEHIND / 2:
            self._told = BEHIND / 2
        elif self.behind >= 2 * self._told:
            self._told = self.behind
            self._tell(f"{self.behind:,.0f} s behind: the model is slower than the source. No frame is left out")

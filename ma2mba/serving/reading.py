"""A reading: a medium that the model reads slice by slice, whoever waits for it. Equal media share one reading.

The engine's thread advances it. Other threads look at its progress.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator

import torch

from ma2mba.errors import UserError
from ma2mba.inference.interleaved import Interleaved
from ma2mba.inference.session import Session
from ma2mba.inference.state_file import Watched
from ma2mba.inference.watch import Chunk
from ma2mba.model.layer import State as LayerState
from ma2mba.serving.contract import Medium, Progress, State
from ma2mba.serving.frames_ahead import Ended, FramesAhead, Opened
from ma2mba.serving.mailbox import News
from ma2mba.serving.prompt import Prefix
from ma2mba.video.decode import Plan
from ma2mba.video.errors import MediaError

BEHIND = 16
"""Layers of a chunk that a GPU may be behind the host, so that a question need not wait for more."""
Keep = Callable[[Prefix, list[LayerState], tuple[Watched, ...]], None]


class MediumReading:
    """A prefix whose last medium is read. `holders` wait for it; `client` was the first.

    media     equal media of those who wait: each may have a file of its own
    session   what was read so far; None before and after
    watched   what is known of the media of the prefix, once it is ready
    frames    frames that the model has read in this process
    """

    def __init__(self, prefix: Prefix, client: str):
        self.prefix, self.client = prefix, client
        self.media = [prefix.medium]
        self.holders = 0
        self.progress = Progress("queued")
        self.news = News()
        self.session: Session | None = None
        self.watched: tuple[Watched, ...] = ()
        self.parent: MediumReading | None = None
        self.loading = self.looked_up = False
        self.frames_read = 0
        self._ahead: FramesAhead | None = None
        self._base: Session | None = None
        self._base_watched: tuple[Watched, ...] = ()
        self._keep: Keep | None = None
        self._work: Iterator[None] | None = None
        self._sequence: Interleaved | None = None
        self._plan: Plan | None = None
        self._began = 0.0

    @property
    def state(self) -> State:
        return self.progress.state

    @property
    def medium(self) -> Medium:
        """The medium whose file is read."""
        return self.media[0]

    def take_other(self) -> bool:
        """After a failure: begin again with another file of the same bytes if the first was deleted meanwhile."""
        if self.medium.path.exists() or len(self.media) == 1:
            return False
        self.media.pop(0)
        self.lost()
        return True

    @property
    def done(self) -> bool:
        return self.state in ("ready", "failed")

    def tell(self, progress: Progress) -> None:
        self.progress = progress
        self.news.tell()

    def found(self, watched: tuple[Watched, ...]) -> None:
        """Say that the state is known."""
        self.watched, last = watched, watched[-1]
        self.tell(Progress("ready", last.seconds, last.seconds, last.frames, last.frames))

    def lost(self) -> None:
        """Say that the state is known no more: it was evicted from memory, and is not on disk."""
        self.loading = self.looked_up = False
        self.watched, self.frames_read = (), 0
        self.tell(Progress("queued"))

    def begin(self, ahead: FramesAhead, base: Session, watched: tuple[Watched, ...], keep: Keep) -> None:
        """Start to read. `base` is the session before the tokens of the last segment, `watched` its media.

        `keep` gets the states at the end, before anybody is told.
        """
        self._keep = keep
        self._ahead, self._base, self._base_watched, self._began = ahead, base, watched, time.monotonic()
        self.session = base.fork()
        self.tell(Progress("reading"))

    def advance(self, seconds: float) -> bool:
        """Let the model read on for about so many seconds, to the end of a chunk at most.

        Return False if there is nothing to do yet. Raise what makes the medium unusable.
        """
        until = time.monotonic() + seconds
        while self._work is None:
            if not self._take():
                return False
            if self.done:
                return True
        for _ in self._work:
            if time.monotonic() > until:
                return True
        self._work = None
        return True

    def seen(self) -> tuple[int, float]:
        """Return how many frames, and seconds of video, were read, in all media of the prefix."""
        before, now = self._base_watched, self.progress
        if self.watched:
            return sum(one.frames for one in self.watched), sum(one.seconds for one in self.watched)
        return sum(one.frames for one in before) + now.frames, sum(one.seconds for one in before) + now.seconds

    def stop(self) -> None:
        """End the decoding."""
        if self._ahead:
            self._ahead.cancel()
        self.session = self._base = self._work = None

    def fail(self, error: BaseException) -> None:
        """Say why the medium cannot be used, without its name: each client has its own."""
        self.stop()
        self.tell(Progress("failed", error=_reason(error, str(self.medium.path))))

    def _take(self) -> bool:
        """Take what the decoder has made. Return False if it has made nothing yet."""
        assert self._ahead
        item = self._ahead.take()
        if isinstance(item, Opened):
            assert self._base
            self.session, self._plan, self._sequence = self._base.fork(), item.plan, item.sequence
            self._report(0)
        elif isinstance(item, Chunk):
            self._work = self._read(item)
        elif isinstance(item, Ended):
            if item.error:
                raise item.error
            self._end()
        return item is not None

    def _end(self) -> None:
        assert self._plan
        frames, name = len(self._plan.shown_N), self.prefix.medium.kind
        seen = Watched(name=name, content=None, seconds=self._plan.duration, frames=frames, sampling="1fps")
        self.watched = (*self._base_watched, seen)
        assert self._keep
        assert self.session
        self._keep(self.prefix, self.session.require_states(), self.watched)
        self._base = self._keep = None
        self._report(frames, "ready")

    def _read(self, chunk: Chunk) -> Iterator[None]:
        """Read a chunk, and pause after each layer."""
        session, sequence = self.session, self._sequence
        assert session
        assert sequence
        if chunk.ready:
            current = torch.cuda.current_stream(session.device)
            current.wait_event(chunk.ready)
            for tensor in chunk.tensors:
                tensor.record_stream(current)
        yield from paced(session.read_by_layers(*chunk.tensors), session.device)
        self._report(sequence.frames_before(chunk.stop))

    def _report(self, frames: int, state: State = "reading") -> None:
        plan = self._plan
        assert plan
        self.frames_read = frames
        seconds = float(plan.times_N[frames - 1]) if frames else 0.0
        seconds = plan.duration if frames == len(plan.shown_N) else seconds
        elapsed = time.monotonic() - self._began
        speed = frames / elapsed if elapsed else 0.0
        self.tell(Progress(state, seconds, plan.duration, frames, len(plan.shown_N), speed))


def paced(layers: Iterator[None], device: torch.device) -> Iterator[None]:
    """Run a chunk by layers. On a GPU, never let the GPU be more than BEHIND layers behind."""
    if device.type != "cuda":
        yield from layers
        return
    before: deque[torch.cuda.Event] = deque()
    for _ in layers:
        before.append(torch.cuda.current_stream(device).record_event())
        if len(before) > BEHIND:
            before.popleft().synchronize()
        yield


def _reason(error: BaseException, path: str) -> str:
    """Return what a client is told, with a remedy and without the server's path of the file."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) and not isinstance(error, UserError):
        return "the server has too little memory to read it now. Try again later"
    if isinstance(error, MediaError):
        intact = f" ({error.partial:,.1f} s are intact)" if error.partial else ""
        return f"{error.reason}{intact}. {error.remedy}"
    if isinstance(error, UserError):
        return str(error).replace(f"{path}: ", "").replace(path, "the file")
    return "could not be read, because of an error of the server. Try again, and tell the operator"

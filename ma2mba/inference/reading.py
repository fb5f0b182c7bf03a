"""Read a video into a session: where watching a video and talking about it meet."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from ma2mba.inference.session import Session
from ma2mba.inference.watch import Progress, watch
from ma2mba.model.conversation import Encoded
from ma2mba.video.frames import WHOLE, FrameReader, Window

Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Read:
    """The session after the last frame, and what was read. `damage`: why a video was not read to its end, or ""."""

    session: Session
    frames: int
    seconds: float
    damage: str = ""


def read_video(
    session: Session,
    before: list[int],
    video: Path,
    count: int | None,
    reader: FrameReader | None,
    report: Report,
    *,
    keep_partial: bool = False,
    window: Window = WHOLE,
) -> Read:
    """Continue a session by the tokens `before` and frames of a video. The session itself does not change.

    `count`: see `FrameReader.stream`. Without `reader`, start a worker for this video alone. Raise UserError if the
    video cannot be used; with `keep_partial`, only if not one of its frames can be.
    """
    size = session.model.config.image_size
    with (
        nullcontext(reader) if reader else FrameReader() as own,
        own.stream(video, size, count=count, keep_damaged=keep_partial, window=window) as stream,
    ):
        after = watch(session, prompt_before(before), stream, report)
        if stream.damage:
            return Read(after, stream.frames, stream.seconds, stream.damage.reason)
        return Read(after, len(stream.shown_N), stream.duration)


def prompt_before(before: list[int]) -> Callable[[int], Encoded]:
    """Return a function that encodes the tokens `before` and a number of frames after them."""
    return lambda frames: Encoded(before, frame_positions=[len(before)] * frames)

"""Let a session read a video while the video is decoded: memory does not grow with the video.

While the model reads a chunk, a thread prepares the next one: it takes the pictures from the decoder's process and
copies them to the model's device.

S tokens of a chunk, M pictures, N frames, C colours, H and W pixels.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ma2mba.inference.ahead import ahead
from ma2mba.inference.interleaved import Interleaved
from ma2mba.inference.session import Session, within
from ma2mba.model.conversation import Encoded
from ma2mba.video.messages import Block
from ma2mba.video.stream import StartAgain, VideoStream

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a video was read: `seconds` of `duration`, `frames` of `total`, `elapsed` seconds after the start."""

    seconds: float
    duration: float
    frames: int
    total: int
    elapsed: float

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.elapsed if self.elapsed else 0.0


@dataclass
class Chunk:
    """The tokens `start`, `start` + 1, ... before `stop`, on the model's device once `ready` has happened.

    `tensors`: ids_T, visual_T and the pictures that visual_T counts, uint8 (M, C, H, W).
    """

    start: int
    stop: int
    tensors: tuple[Tensor, Tensor, Tensor]
    ready: torch.cuda.Event | None


def watch(
    session: Session,
    prompt: Callable[[int], Encoded],
    stream: VideoStream,
    report: Callable[[Progress], None] = lambda _: None,
) -> Session:
    """Return a session that continues `session` by a prompt up to its last frame, with the frames of `stream`.

    `prompt` encodes text around a number of frames; what follows the last frame is left out. `report` is called before
    the first chunk and after each chunk. `session` does not change, whatever happens. Raise UserError if the video
    cannot be used; MediaError.partial then says how many seconds of a damaged video are intact. If the stream
    has `keep_damaged`, read the intact frames of a damaged video. The result has the same bits as `Session.feed` of all
    frames at once.
    """
    while True:
        try:
            return _watch_once(session.fork(), prompt, stream, report)
        except StartAgain:
            log.debug("video: %s is decoded again, its packets state wrong times", stream.path)


def _watch_once(
    session: Session, prompt: Callable[[int], Encoded], stream: VideoStream, report: Callable[[Progress], None]
) -> Session:
    plan, began = stream.plan, time.monotonic()
    sequence = sequence_of(session, prompt, stream)

    def tell(frames: int) -> None:
        seconds = float(plan.times_N[frames - 1]) if frames else 0.0
        seconds = plan.duration if frames == len(plan.shown_N) else seconds
        report(Progress(seconds, plan.duration, frames, len(plan.shown_N), time.monotonic() - began))

    tell(0)
    with ahead(chunks_of(session, sequence, stream), stream.cancel) as chunks:
        before = None
        for chunk in chunks:
            read = _read(session, chunk)
            if before:
                before.synchronize()  # the GPU is at most two chunks behind: what it has read is told, and freed
            before = read
            tell(sequence.frames_before(chunk.stop))
    return session


def sequence_of(session: Session, prompt: Callable[[int], Encoded], stream: VideoStream) -> Interleaved:
    """Return the tokens of a prompt up to the last frame of a stream. `prompt`: see `watch`."""
    encoded = prompt(len(stream.plan.shown_N))
    head = Encoded(encoded.token_ids[: encoded.frame_positions[-1]], frame_positions=encoded.frame_positions)
    return Interleaved(head, session.model.config.tokens_per_frame, stream.plan.shown_N)


def _read(session: Session, chunk: Chunk) -> torch.cuda.Event | None:
    """Let the model read a chunk. Return what happens on the GPU when it has done so; None on a CPU."""
    current = arrive(chunk)
    session.read_chunk(*chunk.tensors)
    return current.record_event() if current else None


def arrive(chunk: Chunk) -> torch.cuda.Stream | None:
    """Let the GPU wait until a chunk is there. Return the stream that may use the chunk; None on a CPU."""
    if not chunk.ready:
        return None
    current = torch.cuda.current_stream(chunk.tensors[0].device)
    current.wait_event(chunk.ready)
    for tensor in chunk.tensors:
        tensor.record_stream(current)
    return current


def chunks_of(session: Session, sequence: Interleaved, stream: VideoStream) -> Iterator[Chunk]:
    """Yield all chunks, and read the stream to its end."""
    device, per_frame = session.device, session.model.config.tokens_per_frame
    on_gpu = device.type == "cuda"
    side = torch.cuda.Stream(device) if on_gpu else None
    pictures = _Pictures(stream, session.no_frames().numpy(), on_gpu)
    for start, stop in sequence.chunks(session.chunk_tokens):
        ids_S, visual_S = sequence.part(start, stop)
        visual_S, pictures_M = within(visual_S, per_frame)
        pictures_MCHW = pictures.take(pictures_M)
        if len(pictures_MCHW) < len(pictures_M):  # the video is damaged: end after its last intact frame
            stop = sequence.end_of(stream.frames)
            if stop <= start:
                return
            ids_S, visual_S = ids_S[: stop - start], visual_S[: stop - start]
        tensors = ids_S, visual_S, pictures_MCHW
        if not side:
            yield Chunk(start, stop, tensors, None)
            continue
        with torch.cuda.stream(side):
            ids_S, visual_S, pictures_MCHW = (_pinned(t).to(device, non_blocking=True) for t in tensors)
        yield Chunk(start, stop, (ids_S, visual_S, pictures_MCHW), side.record_event())
    for block in stream:  # the decoder may still find damage
        raise RuntimeError(f"{stream.path}: picture {block.first} is not shown")


def _pinned(tensor: Tensor) -> Tensor:
    """Return the tensor in pinned memory; as it is if it is there already, or empty."""
    return tensor.pin_memory() if len(tensor) else tensor


class _Pictures:
    """Takes pictures from a stream, in order. The last one may be taken again: two chunks may show it."""

    def __init__(self, stream: VideoStream, none: np.ndarray, pinned: bool):
        self._stream, self._pinned = stream, pinned
        self._block = Block(0, none)

    def take(self, numbers_M: Tensor) -> Tensor:
        """Return these pictures, whose numbers increase by one, as uint8 (M, C, H, W); fewer if the stream ends."""
        shape = (len(numbers_M), *self._block.pictures_MCHW.shape[1:])
        taken_MCHW = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned and len(numbers_M) > 0)
        done = 0
        while done < len(numbers_M):
            at = int(numbers_M[done]) - self._block.first
            some = self._block.pictures_MCHW[at : at + len(numbers_M) - done]
            if len(some):
                taken_MCHW.numpy()[done : done + len(some)] = some
                done += len(some)
            else:
                following = next(self._stream, None)
                if following is None:
                    break
                self._block = following
        return taken_MCHW[:done]

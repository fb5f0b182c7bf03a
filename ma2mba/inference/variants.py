"""Watch a video once for several variants of it: in each variant, a few frames are changed.

The video is decoded once, and its frames pass through the vision encoder once. The variants share one session up to
their first changed frame; from there, each variant has its own session.

T tokens of a chunk, D model width, K tokens of a frame, M pictures of a chunk, C colours, H and W pixels.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ma2mba.inference.ahead import ahead
from ma2mba.inference.interleaved import Interleaved
from ma2mba.inference.session import Session
from ma2mba.inference.watch import Chunk, arrive, chunks_of, sequence_of
from ma2mba.model.conversation import Encoded
from ma2mba.video.stream import StartAgain, VideoStream

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """How a variant differs from the video.

    at    tells whether the frame of this second is changed
    draw  changes a picture in place: uint8 RGB (H, W, C), of the size that the vision encoder sees
    """

    at: Callable[[float], bool]
    draw: Callable[[np.ndarray], None]


@dataclass(frozen=True)
class _Frame:
    """A frame of a chunk: its second, the place of its first token in the chunk, and its picture in the chunk.

    `begin` is negative if the frame began in the chunk before.
    """

    second: float
    begin: int
    picture: int


def watch_variants(
    session: Session, prompt: Callable[[int], Encoded], stream: VideoStream, changes: Sequence[Change]
) -> list[Session]:
    """Return a session for each of `changes`: `watch` returns it for a video with the changed frames.

    The logits may differ in their last bits from the logits after `watch`. Raise UserError as `watch` does.
    """
    while True:
        try:
            return _watch_once(session.fork(), prompt, stream, changes)
        except StartAgain:
            log.debug("video: %s is decoded again, its packets state wrong times", stream.path)


def _watch_once(
    same: Session, prompt: Callable[[int], Encoded], stream: VideoStream, changes: Sequence[Change]
) -> list[Session]:
    """Let `same` read what is the same for all variants. Return the session of each variant."""
    sequence, per_frame = sequence_of(same, prompt, stream), same.model.config.tokens_per_frame
    own: dict[int, Session] = {}
    with ahead(chunks_of(same, sequence, stream), stream.cancel) as chunks:
        for chunk in chunks:
            current = arrive(chunk)
            x_BTD, frames = same.embed(*chunk.tensors), _frames(chunk, sequence, stream, per_frame)
            for number, change in enumerate(changes):
                changed = [frame for frame in frames if change.at(frame.second)]
                if changed and number not in own:
                    own[number] = same.fork()
                if number in own:
                    own[number].read_embedded(_with_changes(same, chunk, x_BTD, changed, change))
            if len(own) < len(changes):
                same.read_embedded(x_BTD)
            if current:
                current.synchronize()  # the GPU holds one chunk at a time, whatever the number of variants
    return [own.get(number, same) for number in range(len(changes))]


def _frames(chunk: Chunk, sequence: Interleaved, stream: VideoStream, per_frame: int) -> list[_Frame]:
    """Return the frames that have tokens in a chunk."""
    visual_T, times, frames = chunk.tensors[1], stream.plan.times_N, []
    for number in range(sequence.frames_before(chunk.start), len(times)):
        begin = sequence.end_of(number + 1) - per_frame - chunk.start
        if begin >= chunk.stop - chunk.start:
            break
        frames.append(_Frame(float(times[number]), begin, int(visual_T[max(begin, 0)]) // per_frame))
    return frames


def _with_changes(session: Session, chunk: Chunk, x_BTD: Tensor, frames: Sequence[_Frame], change: Change) -> Tensor:
    """Return x_BTD with the tokens of changed frames in the place of the video's own tokens."""
    if not frames:
        return x_BTD
    x_BTD, per_frame = x_BTD.clone(), session.model.config.tokens_per_frame
    visual_K = torch.arange(per_frame)
    for frame in frames:
        picture_HWC = chunk.tensors[2][frame.picture].permute(1, 2, 0).cpu().numpy().copy()
        change.draw(picture_HWC)
        picture_MCHW = torch.from_numpy(picture_HWC).permute(2, 0, 1)[None]
        seen_BKD = session.embed(torch.zeros_like(visual_K), visual_K, picture_MCHW)
        begin, stop = max(frame.begin, 0), min(frame.begin + per_frame, x_BTD.shape[1])
        x_BTD[:, begin:stop] = seen_BKD[:, begin - frame.begin : stop - frame.begin]
    return x_BTD

"""Watch a video once, ask about it as often as wanted.

S tokens, N frames, C colours, H and W pixels.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from ma2mba.data.batch import token_places
from ma2mba.errors import UserError
from ma2mba.inference.generate import TextStream, generate
from ma2mba.inference.session import Session
from ma2mba.inference.watch import Progress, watch
from ma2mba.model.conversation import encode_prompt
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.video.frames import FrameReader

log = logging.getLogger(__name__)
ONE_A_SECOND = "1fps"
ANY_QUESTION = "?"
"""A placeholder: the frames are read before the question is known."""


def parse_frames(text: str) -> int | None:
    """Return the number of frames to sample: None for "1fps", 8 for "8". Raise UserError for other text."""
    if text == ONE_A_SECOND:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UserError(f"--frames {text}: not a number of frames above 0. Use 1fps, or a number such as 8")
    return int(text)


class VideoChat:
    """A video that was read once. Every question starts from the recurrent states after its last frame."""

    def __init__(
        self,
        model: VideoMa2mba,
        tokenizer: Tokenizer,
        video: Path,
        frames: int | None = None,
        reader: FrameReader | None = None,
        report: Callable[[Progress], None] = lambda _: None,
    ):
        """Watch the video at 1 FPS (`frames=None`) or at `frames` frames, decoded in the worker process of `reader`.

        Without `reader`, start a worker for this video alone. `report` is called as `watch` says. Raise UserError if
        the video cannot be used.
        """
        self.model, self.tokenizer = model, tokenizer
        with (
            nullcontext(reader) if reader else FrameReader() as started,
            started.stream(video, model.config.image_size, count=frames) as stream,
        ):
            self._watched = watch(
                Session(model, tokenizer), lambda n: encode_prompt(tokenizer, ANY_QUESTION, n), stream, report
            )
        self.frames, self.duration = len(stream.shown_N), stream.duration
        log.debug(
            "video: %s, %.1f s, %d frames sampled, %d of them different",
            *(video, self.duration, self.frames, stream.plan.pictures),
        )

    def ask(self, question: str, max_tokens: int = 256) -> Iterator[str]:
        """Yield the answer in pieces of text. Raises UserError if the question is empty."""
        encoded = encode_prompt(self.tokenizer, question, self.frames)
        session = self._watched.fork()
        session.feed_text(encoded.token_ids[encoded.frame_positions[-1] :])
        text = TextStream(self.tokenizer)
        for token in generate(session, max_tokens):
            yield text.push(token)
        yield text.finish()


def with_frames(
    token_ids: list[int], frame_positions: list[int], tokens_per_frame: int, shown_N: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """Return ids_S and visual_S, int64, of text with frames between its tokens, for `Session.feed`.

    Frame n is picture `shown_N[n]`, by default picture n.
    """
    text_T, seen_NK = token_places(np.asarray(frame_positions, np.int64), len(token_ids), tokens_per_frame)
    ids_S = torch.zeros(text_T.size + seen_NK.size, dtype=torch.long)
    visual_S = torch.full_like(ids_S, -1)
    ids_S[torch.from_numpy(text_T)] = torch.tensor(token_ids, dtype=torch.long)
    shown_N = np.arange(len(frame_positions)) if shown_N is None else shown_N
    visual_NK = shown_N[:, None] * tokens_per_frame + np.arange(tokens_per_frame)
    visual_S[torch.from_numpy(seen_NK.ravel())] = torch.from_numpy(visual_NK.ravel())
    return ids_S, visual_S

"""The recurrent states after everything that the model has read: constant memory for any length of video.

B batch (1 here), S tokens of one feed, T tokens of a chunk, D model width, N frames, C colours, H and W pixels,
V vocabulary, M pictures of a chunk.
"""

import itertools

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ma2mba.data.cuts import cuts
from ma2mba.model.layer import State
from ma2mba.model.video_ma2mba import VideoMa2mba


class Session:
    """The recurrent states after all tokens that were fed, and the logits of the next token.

    `states` is None before the first token; afterwards it holds one recurrent state a layer.
    """

    def __init__(self, model: VideoMa2mba, tokenizer: Tokenizer, chunk_tokens: int = 4096):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.chunk_tokens = chunk_tokens
        self.states: list[State] | None = None
        self._last_1D: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def fork(self) -> "Session":
        """Return a second session that continues from here. Later feeds of one session do not change the other."""
        other = Session(self.model, self.tokenizer, self.chunk_tokens)
        other.states, other._last_1D = self.states, self._last_1D
        return other

    @torch.no_grad()
    def feed(self, ids_S: Tensor, visual_S: Tensor, frames_NCHW: Tensor) -> None:
        """Read S tokens, at most `chunk_tokens` at a time.

        `ids_S` int64; `visual_S` int64: n * K + k at token k of frame n of `frames_NCHW` (uint8), -1 at text. Several
        places may show one frame; the vision encoder sees it once a chunk.
        """
        per_frame = self.model.config.tokens_per_frame
        for start, stop in itertools.pairwise(cuts(visual_S[None], self.chunk_tokens, per_frame)):
            visual_T = visual_S[start:stop].clone()
            seen_T = visual_T >= 0
            frames_M, places = torch.unique(visual_T[seen_T] // per_frame, return_inverse=True)
            visual_T[seen_T] = places * per_frame + visual_T[seen_T] % per_frame
            self._step(ids_S[start:stop], visual_T, frames_NCHW[frames_M])

    def feed_text(self, ids: list[int]) -> None:
        """Read text tokens."""
        ids_S = torch.tensor(ids, dtype=torch.long)
        self.feed(ids_S, torch.full_like(ids_S, -1), self.no_frames())

    def no_frames(self) -> Tensor:
        """Return an empty frames_NCHW, for a feed of text alone."""
        size = self.model.config.image_size
        return torch.zeros(0, 3, size, size, dtype=torch.uint8)

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Return the logits of the next token, logits_V fp32 over the tokenizer's vocabulary.

        Raises ValueError before the first feed.
        """
        if self._last_1D is None:
            raise ValueError("this session has not read any token. Call feed or feed_text first")
        logits_1V = self.model.logits(self._last_1D[None])[0]
        return logits_1V[0, : self.tokenizer.get_vocab_size()].float()

    def _step(self, ids_T: Tensor, visual_T: Tensor, frames_NCHW: Tensor) -> None:
        device = self.device
        x_BTD = self.model.embed(ids_T[None].to(device), visual_T[None].to(device), frames_NCHW.to(device))
        states = self.model.initial_states(x_BTD) if self.states is None else self.states
        x_BTD, self.states = self.model.run(x_BTD, states)
        self._last_1D = x_BTD[0, -1:].clone()

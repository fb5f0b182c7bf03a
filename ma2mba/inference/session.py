"""The recurrent states after everything that the model has read: constant memory for any length of video.

B batch (1 here), S tokens of one feed, T tokens of a chunk, D model width, N frames, C colours, H and W pixels,
V vocabulary, M pictures of a chunk.
"""

import itertools
from collections.abc import Iterator

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ma2mba.data.cuts import cuts
from ma2mba.model.layer import State
from ma2mba.model.video_ma2mba import VideoMa2mba

CHUNK_TOKENS = {"cpu": 4096, "cuda": 16384}
"""The most tokens of a chunk on each kind of device: 4,096 starve a GPU."""
CHUNK_FRAMES = 128
"""The most frames of a chunk: with few tokens a frame, the vision encoder takes more memory than the language model."""


class Session:
    """The recurrent states after all tokens that were fed, and the logits of the next token.

    `states` is None before the first token; afterwards it holds one recurrent state a layer.
    """

    def __init__(self, model: VideoMa2mba, tokenizer: Tokenizer, chunk_tokens: int | None = None):
        """`chunk_tokens`: the most tokens of one call; by default what `chunk_length` returns."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.chunk_tokens = chunk_tokens or chunk_length(self.device.type, model.config.tokens_per_frame)
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

    def require_states(self) -> list[State]:
        """Return `states`. Raise ValueError before the first feed."""
        if self.states is None:
            raise ValueError("this session has not read any token. Call feed or feed_text first")
        return self.states

    @property
    def last_1D(self) -> Tensor | None:
        """The residual stream after the last token, fp32 or wider; None if a decoder has read that token."""
        return self._last_1D

    def jump(self, states: list[State], last_1D: Tensor | None = None) -> None:
        """Continue from other states. Without `last_1D`, the logits are unknown until the next feed."""
        self.states, self._last_1D = states, last_1D

    @torch.no_grad()
    def feed(self, ids_S: Tensor, visual_S: Tensor, frames_NCHW: Tensor) -> None:
        """Read S tokens, at most `chunk_tokens` at a time.

        `ids_S` int64; `visual_S` int64: n * K + k at token k of frame n of `frames_NCHW` (uint8), -1 at text. Several
        places may show one frame; the vision encoder sees it once a chunk.
        """
        per_frame = self.model.config.tokens_per_frame
        for start, stop in itertools.pairwise(cuts(visual_S[None], self.chunk_tokens, per_frame)):
            visual_T, frames_M = within(visual_S[start:stop], per_frame)
            self.read_chunk(ids_S[start:stop], visual_T, frames_NCHW[frames_M])

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

        Raises ValueError before the first feed, and after `jump`.
        """
        self.require_states()
        if self._last_1D is None:
            raise ValueError("a decoder has read the last token. Feed the next one first")
        logits_1V = self.model.logits(self._last_1D[None])[0]
        return logits_1V[0, : self.tokenizer.get_vocab_size()].float()

    def read_chunk(self, ids_T: Tensor, visual_T: Tensor, frames_MCHW: Tensor) -> None:
        """Read the tokens of one chunk, at most `chunk_tokens`. `visual_T` counts the pictures of this chunk."""
        for _ in self.read_by_layers(ids_T, visual_T, frames_MCHW):
            pass

    def read_by_layers(self, ids_T: Tensor, visual_T: Tensor, frames_MCHW: Tensor) -> Iterator[None]:
        """`read_chunk` that pauses after the embedding and after each layer. The session changes at the end alone."""
        yield from self._through_layers(self.embed(ids_T, visual_T, frames_MCHW))

    @torch.no_grad()
    def embed(self, ids_T: Tensor, visual_T: Tensor, frames_MCHW: Tensor) -> Tensor:
        """Return the residual stream x_BTD before the first layer, of the tokens that `read_chunk` takes."""
        device = self.device
        return self.model.embed(ids_T[None].to(device), visual_T[None].to(device), frames_MCHW.to(device))

    def read_embedded(self, x_BTD: Tensor) -> None:
        """Read the tokens of one chunk that are embedded already."""
        for _ in self._through_layers(x_BTD):
            pass

    def _through_layers(self, x_BTD: Tensor) -> Iterator[None]:
        """Pause before each layer. The session changes at the end alone."""
        with torch.no_grad():
            before = self.model.initial_states(x_BTD) if self.states is None else self.states
        after: list[State] = []
        for layer, state in zip(self.model.layers, before, strict=True):
            yield
            with torch.no_grad():
                x_BTD, state = layer(x_BTD, state)
            after.append(state)
        self.states, self._last_1D = after, x_BTD[0, -1:].clone()


def chunk_length(device: str, tokens_per_frame: int) -> int:
    """Return the tokens of a chunk for a kind of device and a model.

    The length never depends on how much memory is free: the same length always gives the same bits.
    """
    return min(CHUNK_TOKENS.get(device, CHUNK_TOKENS["cpu"]), CHUNK_FRAMES * tokens_per_frame)


def within(visual_T: Tensor, tokens_per_frame: int) -> tuple[Tensor, Tensor]:
    """Return visual_T of a chunk such that it counts the chunk's own pictures, and the numbers of these, pictures_M."""
    visual_T = visual_T.clone()
    seen_T = visual_T >= 0
    pictures_M, places = torch.unique(visual_T[seen_T] // tokens_per_frame, return_inverse=True)
    visual_T[seen_T] = places * tokens_per_frame + visual_T[seen_T] % tokens_per_frame
    return visual_T, pictures_M


@torch.no_grad()
def blank_states(model: VideoMa2mba) -> tuple[list[State], Tensor]:
    """Return the states before the first token, and an empty residual last_1D, as a session of this model has them."""
    embedding = model.language_model.backbone.embedding.weight.detach()
    x_BTD = embedding.new_zeros(1, 1, embedding.shape[1], dtype=torch.promote_types(embedding.dtype, torch.float32))
    return model.initial_states(x_BTD), x_BTD[0]

"""Text with frames between its tokens, as ids and visual tokens: any part on request, cut into chunks.

S tokens of a part, T text tokens, N frames, K tokens of a frame.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ma2mba.data.batch import token_places
from ma2mba.data.cuts import cuts
from ma2mba.model.conversation import Encoded


class Interleaved:
    """A sequence of text and frames. It holds a few numbers for each frame, not for each token of a frame."""

    def __init__(self, encoded: Encoded, tokens_per_frame: int, shown_N: np.ndarray):
        """Frame n shows picture `shown_N[n]`."""
        self._ids_T = np.array(encoded.token_ids, np.int64)
        self._per_frame, self._shown_N = tokens_per_frame, shown_N
        frame_N = np.arange(len(shown_N))
        self._first_N = np.array(encoded.frame_positions, np.int64) + frame_N * tokens_per_frame
        self.tokens = len(self._ids_T) + len(shown_N) * tokens_per_frame

    def part(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return ids_S and visual_S, int64, of the tokens start, start + 1, ... before stop, for `Session.feed`."""
        K = self._per_frame
        some = slice(*np.searchsorted(self._first_N, [start - K + 1, stop]))
        places_NK = self._first_N[some, None] + np.arange(K) - start
        tokens_NK = self._shown_N[some, None] * K + np.arange(K)
        inside_NK = (places_NK >= 0) & (places_NK < stop - start)
        ids_S, visual_S = np.zeros(stop - start, np.int64), np.full(stop - start, -1, np.int64)
        visual_S[places_NK[inside_NK]] = tokens_NK[inside_NK]
        text_S = visual_S < 0
        before = start - int(np.clip(start - self._first_N, 0, K).sum())
        ids_S[text_S] = self._ids_T[before : before + int(text_S.sum())]
        return torch.from_numpy(ids_S), torch.from_numpy(visual_S)

    def chunks(self, chunk_tokens: int) -> Iterator[tuple[int, int]]:
        """Yield the first token and the end of each chunk, at the boundaries that `cuts` gives for the whole."""
        start = 0
        while start < self.tokens:
            stop = self.next_stop(start, chunk_tokens)
            yield start, stop
            start = stop

    def next_stop(self, start: int, chunk_tokens: int) -> int:
        """Return the end of the chunk that begins at a token. It depends on `chunk_tokens` + 1 tokens alone."""
        _, visual_S = self.part(start, min(start + chunk_tokens + 1, self.tokens))
        return start + cuts(visual_S[None], chunk_tokens, self._per_frame)[1]

    def end_of(self, frames: int) -> int:
        """Return how many tokens end with the first `frames` frames; 0 for none."""
        return int(self._first_N[frames - 1]) + self._per_frame if frames else 0

    def frames_before(self, token: int) -> int:
        """Return how many whole frames lie before a token."""
        return int(np.searchsorted(self._first_N + self._per_frame, token, "right"))


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

"""Samples -> one padded batch, with every visual token of every frame in its place.

B samples, T text tokens of a sample, S tokens of the longest sample (text and visual), N frames, K tokens of a frame,
C colours, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ma2mba.data.frames import Frames, FrameSource

IGNORE = -100


@dataclass(frozen=True)
class Sample:
    """Text, which of it is supervised, the frames, and before which token each stands (not decreasing, up to T).

    token_ids_T int, supervised_T bool, frame_positions_N int; frames uint8 (N, C, H, W) or features bf16 (N, K, V),
    in memory or read when asked for.
    """

    sample_id: str
    token_ids_T: np.ndarray
    supervised_T: np.ndarray
    frame_positions_N: np.ndarray
    frames: FrameSource | np.ndarray


@dataclass(frozen=True)
class Batch:
    """What one micro-step sees. Rows are padded on the right.

    ids_BS      int64, 0 at visual positions and padding
    targets_BS  int64, already shifted: what position t must predict; -100 where nothing is learned
    visual_BS   int64, n * K + k where token k of frame n of `frames` stands; -1 at text and padding
    frames      those of all samples one after the other, read when asked for; may be empty
    supervised  number of targets that are not -100
    """

    ids_BS: Tensor
    targets_BS: Tensor
    visual_BS: Tensor
    frames: Frames
    sample_ids: list[str]
    supervised: int

    @property
    def frames_NCHW(self) -> Tensor:
        """All frames in memory at once: for small batches."""
        return self.frames.all()


def collate(samples: Sequence[Sample], tokens_per_frame: int) -> Batch:
    """Samples -> Batch. Raises ValueError when there is no sample."""
    if not samples:
        raise ValueError("a batch needs at least one sample")
    S = max(len(s.token_ids_T) + len(s.frame_positions_N) * tokens_per_frame for s in samples)
    ids_BS = np.zeros((len(samples), S), np.int64)
    targets_BS = np.full((len(samples), S), IGNORE, np.int64)
    visual_BS = np.full((len(samples), S), -1, np.int64)
    first_frame = 0
    for b, sample in enumerate(samples):
        text_T, seen_NK = token_places(sample.frame_positions_N, len(sample.token_ids_T), tokens_per_frame)
        ids_BS[b, text_T] = sample.token_ids_T
        learned_T = sample.supervised_T & (text_T > 0)
        targets_BS[b, text_T[learned_T] - 1] = sample.token_ids_T[learned_T]
        visual_BS[b, seen_NK.ravel()] = first_frame * tokens_per_frame + np.arange(seen_NK.size)
        first_frame += len(sample.frame_positions_N)
    return Batch(
        ids_BS=torch.from_numpy(ids_BS),
        targets_BS=torch.from_numpy(targets_BS),
        visual_BS=torch.from_numpy(visual_BS),
        frames=Frames([s.frames for s in samples]),
        sample_ids=[s.sample_id for s in samples],
        supervised=int((targets_BS != IGNORE).sum()),
    )


def token_places(
    frame_positions_N: np.ndarray, text_tokens: int, tokens_per_frame: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where each text token stands in the whole sequence (T,) and where the tokens of each frame stand (N, K)."""
    token_T = np.arange(text_tokens)
    text_T = token_T + tokens_per_frame * np.searchsorted(frame_positions_N, token_T, side="right")
    frame_N = np.arange(len(frame_positions_N))
    first_N = np.asarray(frame_positions_N, np.int64) + frame_N * tokens_per_frame
    return text_T, first_N[:, None] + np.arange(tokens_per_frame)


def target_count(supervised_T: np.ndarray, frame_positions_N: np.ndarray) -> int:
    """How many targets `collate` makes of a sample: its supervised tokens, less one that nothing precedes."""
    unseen_first = (
        len(supervised_T) > 0 and bool(supervised_T[0]) and not (len(frame_positions_N) and frame_positions_N[0] == 0)
    )
    return int(supervised_T.sum()) - int(unseen_first)

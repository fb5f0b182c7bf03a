"""Collate samples into one padded batch, with the visual tokens of every frame in their places.

B samples, T text tokens of a sample, S tokens of the longest sample (text and visual), N frames, K tokens of a frame,
V width of a feature, C colours, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ma2mba.data.frames import Frames, FrameSource
from ma2mba.model.encoded import IGNORE


@dataclass(frozen=True)
class Sample:
    """One conversation about a video or picture, or text alone (N = 0).

    token_ids_T        int, the text tokens
    supervised_T       bool, True for tokens that the model learns to predict
    frame_positions_N  int, the text token that each frame precedes: 0..T, in ascending order
    frames             pictures uint8 (N, C, H, W) or features bf16 (N, K, V), in memory or read on request
    """

    sample_id: str
    token_ids_T: np.ndarray
    supervised_T: np.ndarray
    frame_positions_N: np.ndarray
    frames: FrameSource | np.ndarray


@dataclass(frozen=True)
class Batch:
    """One micro-batch: a row for each sample, padded on the right.

    ids_BS      int64, text token ids; 0 for visual tokens and padding
    targets_BS  int64, the token that each position must predict (already shifted); IGNORE (-100) for no loss
    visual_BS   int64, n * K + k for token k of frame n in `frames`; -1 for text and padding
    frames      the frames of all samples in order, read on request; may be empty
    supervised  number of targets that are not IGNORE
    """

    ids_BS: Tensor
    targets_BS: Tensor
    visual_BS: Tensor
    frames: Frames
    sample_ids: list[str]
    supervised: int


def collate(samples: Sequence[Sample], tokens_per_frame: int) -> Batch:
    """Return the samples as one Batch. Raise ValueError if there is no sample."""
    if not samples:
        raise ValueError("a batch needs at least one sample")
    S = max(len(s.token_ids_T) + len(s.frame_positions_N) * tokens_per_frame for s in samples)
    ids_BS = np.zeros((len(samples), S), np.int64)
    targets_BS = np.full((len(samples), S), IGNORE, np.int64)
    visual_BS = np.full((len(samples), S), -1, np.int64)
    first_frame = 0
    for b, sample in enumerate(samples):
        text_T, visual_NK = token_places(sample.frame_positions_N, len(sample.token_ids_T), tokens_per_frame)
        ids_BS[b, text_T] = sample.token_ids_T
        target_T = sample.supervised_T & (text_T > 0)
        targets_BS[b, text_T[target_T] - 1] = sample.token_ids_T[target_T]
        visual_BS[b, visual_NK.ravel()] = first_frame * tokens_per_frame + np.arange(visual_NK.size)
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
    """Return the position in the sequence of each text token (T,) and of the tokens of each frame (N, K)."""
    token_T = np.arange(text_tokens)
    text_T = token_T + tokens_per_frame * np.searchsorted(frame_positions_N, token_T, side="right")
    frame_N = np.arange(len(frame_positions_N))
    first_N = np.asarray(frame_positions_N, np.int64) + frame_N * tokens_per_frame
    return text_T, first_N[:, None] + np.arange(tokens_per_frame)


def target_count(supervised_T: np.ndarray, frame_positions_N: np.ndarray) -> int:
    """Return how many targets `collate` gives a sample: all supervised tokens except one that nothing precedes."""
    first_is_lost = (
        len(supervised_T) > 0 and bool(supervised_T[0]) and not (len(frame_positions_N) and frame_positions_N[0] == 0)
    )
    return int(supervised_T.sum()) - int(first_is_lost)

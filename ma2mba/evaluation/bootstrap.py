"""95% confidence intervals by a bootstrap over videos.

Questions about one video are not independent, so whole videos are drawn, with replacement. The draws are those of
`numpy.random.default_rng(0).integers(0, V, (DRAWS, V))`, videos in the order of their names; the interval is from the
2.5th to the 97.5th percentile (linear interpolation) of the means of all draws.

V videos, T tasks.
"""

from collections.abc import Sequence

import numpy as np

SEED = 0
DRAWS = 2_000
AT_ONCE = 200
"""Draws that are held at once."""


def interval(scores: Sequence[float], videos: Sequence[str], tasks: Sequence[str] = ()) -> tuple[float, float] | None:
    """Return the 95% interval of the mean of scores, one for each question; None for fewer than two videos.

    With `tasks`, of the mean over tasks of the mean of each task; a draw without any video of a task leaves it out.
    """
    names, video_N = np.unique(np.array(videos, dtype=object).astype(str), return_inverse=True)
    if len(names) < 2:
        return None
    kinds, task_N = np.unique(np.array(tasks or [""] * len(scores)), return_inverse=True)
    sums_VT, counts_VT = np.zeros((2, len(names), len(kinds)))
    np.add.at(sums_VT, (video_N, task_N), np.asarray(scores, float))
    np.add.at(counts_VT, (video_N, task_N), 1.0)
    low, high = np.percentile(_means(sums_VT, counts_VT), [2.5, 97.5])
    return round(float(low), 6), round(float(high), 6)


def _means(sums_VT: np.ndarray, counts_VT: np.ndarray) -> np.ndarray:
    """Return the mean of each draw."""
    videos, random = len(sums_VT), np.random.default_rng(SEED)
    means = []
    for first in range(0, DRAWS, AT_ONCE):
        draws = random.integers(0, videos, (min(AT_ONCE, DRAWS - first), videos))
        offsets = np.arange(len(draws))[:, None] * videos
        times_drawn = np.bincount((draws + offsets).ravel(), minlength=draws.size).reshape(draws.shape)
        counts = times_drawn @ counts_VT
        with np.errstate(invalid="ignore"):
            means.append(np.nanmean((times_drawn @ sums_VT) / counts, axis=1))
    return np.concatenate(means)

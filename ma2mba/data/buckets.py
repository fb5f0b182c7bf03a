"""Cut the samples of a step into micro-batches of similar length, each within a budget of padded tokens.

N samples of a step, sorted from long to short. A micro-batch is a slice of these samples. Its first sample is the
longest, and all others are padded to that length.
"""

import numpy as np


def pack(length_N: np.ndarray, micro_batches: int, budget: int) -> list[slice]:
    """Cut the samples into exactly `micro_batches` slices, so that the largest slice is as small as possible.

    A slice has at most `budget` padded tokens, unless it is one sample that is longer than the budget. Raise ValueError
    if the samples need more slices, or if there are fewer samples than slices.
    """
    if len(cut(length_N, budget)) > micro_batches:
        raise ValueError(f"{len(cut(length_N, budget))} micro-batches are needed for a budget of {budget} tokens")
    if len(length_N) < micro_batches:
        raise ValueError(f"{len(length_N)} samples cannot fill {micro_batches} micro-batches")
    low, high = 0, budget  # cut(high) gives few enough slices, cut(low) gives too many or is untried
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if len(cut(length_N, middle)) <= micro_batches else (middle, high)
    cuts = cut(length_N, high)
    while len(cuts) < micro_batches:
        i = max(range(len(cuts)), key=lambda i: (cuts[i].stop - cuts[i].start > 1, padded(length_N, cuts[i])))
        middle = (cuts[i].start + cuts[i].stop + 1) // 2
        cuts[i : i + 1] = [slice(cuts[i].start, middle), slice(middle, cuts[i].stop)]
    return cuts


def cut(length_N: np.ndarray, budget: int) -> list[slice]:
    """Cut the samples into the fewest slices of at most `budget` padded tokens. A longer sample is a slice alone."""
    cuts, start = [], 0
    while start < len(length_N):
        stop = min(start + max(1, budget // int(length_N[start])), len(length_N))
        cuts.append(slice(start, stop))
        start = stop
    return cuts


def padded(length_N: np.ndarray, at: slice) -> int:
    """Return the padded tokens of a slice: its number of samples times the length of its first sample."""
    return (at.stop - at.start) * int(length_N[at.start])

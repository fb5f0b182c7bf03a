"""Micro-batches of samples of similar length, padded on the right, under a budget of tokens.

N samples of a step, sorted from long to short.
"""

import numpy as np


def pack(length_N: np.ndarray, micro_batches: int, budget: int) -> list[slice]:
    """Cut the samples into exactly that many neighbourhoods, the largest of them (padded tokens) as small as can be.

    None holds more than `budget` padded tokens, but for a sample that is longer than that and comes alone.
    Raises ValueError when that takes more neighbourhoods, or there are fewer samples than neighbourhoods.
    """
    if len(cut(length_N, budget)) > micro_batches:
        raise ValueError(f"{len(cut(length_N, budget))} micro-batches are needed under {budget} tokens")
    if len(length_N) < micro_batches:
        raise ValueError(f"{len(length_N)} samples cannot fill {micro_batches} micro-batches")
    low, high = 0, budget  # cut(low) is too fine or untried, cut(high) fits
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
    """The fewest neighbourhoods of at most `budget` padded tokens; a longer sample comes alone."""
    cuts, start = [], 0
    while start < len(length_N):
        stop = min(start + max(1, budget // int(length_N[start])), len(length_N))
        cuts.append(slice(start, stop))
        start = stop
    return cuts


def padded(length_N: np.ndarray, at: slice) -> int:
    """Tokens of a neighbourhood when all are as long as its first."""
    return (at.stop - at.start) * int(length_N[at.start])

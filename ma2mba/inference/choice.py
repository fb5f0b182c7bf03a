"""Choose the next token of each sequence of a batch: greedy, or by a draw from the filtered distribution.

B sequences, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ma2mba.inference.sampling import Draws, Sampling

HEATS = (1e-30, 1e30)
"""The lowest and the highest temperature that fp32 can divide by."""


def choose(logits_BV: Tensor, sampling: Sampling, draws: Sequence[Draws]) -> Tensor:
    """Return ids_B, int64, on the device of the logits. With a temperature, take one draw for each sequence."""
    if sampling.heat == 0:
        return logits_BV.argmax(-1)
    drawn_B1 = torch.tensor([[own.next()] for own in draws], dtype=torch.float64).to(logits_BV.device)
    sums_BV = filtered(logits_BV, sampling).double().softmax(-1).cumsum(-1)
    ids_B = torch.searchsorted(sums_BV, drawn_B1 * sums_BV[:, -1:], right=True)[:, 0]
    return ids_B.clamp(max=logits_BV.shape[-1] - 1)  # beyond it where the logits are NaN, which the caller reports


def filtered(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Return the logits divided by the temperature. Those that the filters drop are -inf.

    The order of the filters, and what they keep of equal logits, are as in transformers: temperature, top_k, top_p,
    min_p.
    """
    # A small temperature would make them infinite, were the maximum not 0.
    heat = min(max(sampling.heat, HEATS[0]), HEATS[1])
    logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / heat
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(sampling.top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    if sampling.top_p < 1:
        sorted_BV, order_BV = logits_BV.sort()
        drop_BV = sorted_BV.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        drop_BV[:, -1] = False
        logits_BV = logits_BV.masked_fill(drop_BV.scatter(1, order_BV, drop_BV), -torch.inf)
    if sampling.min_p > 0:
        shares_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)).exp()
        logits_BV = logits_BV.masked_fill(shares_BV < sampling.min_p, -torch.inf)
    return logits_BV

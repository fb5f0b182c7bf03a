"""Choose the next token of each sequence of a batch: greedy, or by a draw from the filtered distribution.

B sequences, H sequences with a temperature, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ma2mba.inference.sampling import Draws, Sampling

HEATS = (1e-30, 1e30)
"""The lowest and the highest temperature that fp32 can divide by."""


def choose(logits_BV: Tensor, samplings: Sequence[Sampling], draws: Sequence[Draws]) -> Tensor:
    """Return ids_B, int64, on the device of the logits. Each sequence has its own options and draws.

    A sequence with a temperature takes one draw. Its token depends on nothing of the other sequences.
    """
    ids_B = logits_BV.argmax(-1)
    hot = [row for row, sampling in enumerate(samplings) if sampling.heat]
    if not hot:
        return ids_B
    device, every = logits_BV.device, len(hot) == len(logits_BV)
    rows_H = copied(torch.tensor(hot), device)
    some_HV = filtered(logits_BV if every else logits_BV[rows_H], [samplings[row] for row in hot])
    sums_HV = some_HV.double().softmax(-1).cumsum(-1)
    drawn_H1 = copied(torch.tensor([[draws[row].next()] for row in hot], dtype=torch.float64), device)
    ids_H = torch.searchsorted(sums_HV, drawn_H1 * sums_HV[:, -1:], right=True)[:, 0]
    ids_H = ids_H.clamp(max=logits_BV.shape[-1] - 1)  # beyond it where the logits are NaN, which the caller reports
    return ids_H if every else ids_B.index_copy(0, rows_H, ids_H)


def filtered(logits_BV: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Return the logits divided by the temperatures. Those that the filters drop are -inf.

    The order of the filters, and what they keep of equal logits, are as in transformers: temperature, top_k, top_p,
    min_p.
    """
    size = logits_BV.shape[-1]
    # A small temperature would make them infinite, were the maximum not 0.
    heats = [min(max(sampling.heat, HEATS[0]), HEATS[1]) for sampling in samplings]
    most = [sampling.top_k if 0 < sampling.top_k < size else 0 for sampling in samplings]
    beyond = [1 - sampling.top_p if sampling.top_p < 1 else -1.0 for sampling in samplings]  # no sum is below 0
    least = [sampling.min_p for sampling in samplings]
    numbers_4B1 = torch.tensor([heats, most, beyond, least], dtype=torch.float64)[..., None]
    heats_B1, most_B1, beyond_B1, least_B1 = copied(numbers_4B1, logits_BV.device).to(logits_BV.dtype)
    logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / heats_B1
    if any(most):
        most_B1 = most_B1.long()
        lowest_B1 = logits_BV.topk(max(most)).values.gather(1, (most_B1 - 1).clamp(min=0))
        logits_BV = logits_BV.masked_fill((logits_BV < lowest_B1) & (most_B1 > 0), -torch.inf)
    if max(beyond) >= 0:
        sorted_BV, order_BV = logits_BV.sort()
        drop_BV = sorted_BV.softmax(-1).cumsum(-1) <= beyond_B1
        drop_BV[:, -1] = False
        logits_BV = logits_BV.masked_fill(drop_BV.scatter(1, order_BV, drop_BV), -torch.inf)
    if max(least) > 0:
        shares_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)).exp()
        logits_BV = logits_BV.masked_fill(shares_BV < least_B1, -torch.inf)
    return logits_BV


def copied(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device. The host does not wait for the device."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values

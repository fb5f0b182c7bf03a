"""The exchanges of a layer whose tokens are spread over the ranks of a process group.

Each rank holds a slice of a chunk's tokens, in rank order. The states before and after the chunk are the same on every
rank, and so are their gradients: they are whole, not shares of a sum. A tensor that only one rank uses (its tokens, the
states before its slice) has that rank's gradient. The gradient of a parameter is each rank's share: the caller sums the
shares over the ranks. A slice may have any number of tokens, also 0, but every rank must make the same calls in the
same order, in backward too. No call waits for the device.

B batch, T tokens of this rank's slice, V channels, W taps less one, H heads, P head width, N state size, R ranks,
S slots (W for the state before the chunk, then W for every rank).
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13


def inputs_before(x_BTV: Tensor, initial_BVW: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Return the last W inputs of the convolution before this rank's slice, and before the next chunk, oldest first.

    `x_BTV` holds the inputs of this slice, `initial_BVW` the last inputs before the chunk. Both results have the dtype
    of `initial_BVW`.
    """
    return _InputsBefore.apply(last_inputs(x_BTV, initial_BVW), initial_BVW, x_BTV.shape[1], group)


def last_inputs(x_BTV: Tensor, like_BVW: Tensor) -> Tensor:
    """Return the last W inputs as (batch, channels, W) in the dtype of `like_BVW`, padded with zeros at the front."""
    kept = like_BVW.shape[2]
    tail_BVW = x_BTV[:, -kept:].transpose(1, 2).to(like_BVW.dtype)
    return F.pad(tail_BVW, (kept - tail_BVW.shape[2], 0))


def exchange_inputs(
    tail_BVW: Tensor, initial_BVW: Tensor, tokens: int, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """`inputs_before` for the slice's `last_inputs`, without a graph; also return `_last_slots`."""
    count = tail_BVW.new_full((1,), min(tokens, tail_BVW.shape[2]))
    tails_RBVW, counts_R1 = _gather([tail_BVW, count], group)
    slots_RW = _last_slots(counts_R1, tail_BVW.shape[2])
    slots_BVS = torch.cat([initial_BVW, *tails_RBVW], dim=2)
    return slots_BVS[..., slots_RW[dist.get_rank(group)]], slots_BVS[..., slots_RW[-1]], slots_RW


def exchange_input_gradients(
    dbefore_BVW: Tensor, dafter_BVW: Tensor | None, slots_RW: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the slice's `last_inputs` (zero in the padding) and of the inputs before the chunk."""
    (dbefore_RBVW,) = _gather([dbefore_BVW], group)
    batch, channels, kept = dbefore_BVW.shape
    dslots_BVS = dbefore_BVW.new_zeros(batch, channels, slots_RW.numel())
    for slots_W, d_BVW in zip(slots_RW, [*dbefore_RBVW, dafter_BVW], strict=True):
        if d_BVW is not None:
            dslots_BVS.index_add_(2, slots_W, d_BVW.to(dslots_BVS.dtype))
    own = (dist.get_rank(group) + 1) * kept
    return dslots_BVS[..., own : own + kept], dslots_BVS[..., :kept]


def _last_slots(counts_R1: Tensor, kept: int) -> Tensor:
    """Return (R + 1, W): the slots that hold the last W inputs before each rank's slice, then before the next chunk."""
    missing_W, before_RS = _places(len(counts_R1) + 1, kept, counts_R1.device)
    filled_RW = F.pad(counts_R1, (0, 0, 1, 0), value=kept) >= missing_W
    return torch.argsort((filled_RW.flatten() & before_RS).byte(), dim=1, stable=True)[:, -kept:]


@cache
def _places(slices: int, kept: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return how many inputs a slice needs for each of its slots to be filled, and which slots precede each slice."""
    ends_R1 = kept * torch.arange(1, slices + 1, device=device)[:, None]
    return torch.arange(kept, 0, -1, device=device), torch.arange(slices * kept, device=device) < ends_R1


class _InputsBefore(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tail_BVW: Tensor, initial_BVW: Tensor, tokens: int, group: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor]:
        before_BVW, after_BVW, slots_RW = exchange_inputs(tail_BVW, initial_BVW, tokens, group)
        ctx.save_for_backward(slots_RW)
        ctx.group = group
        return before_BVW, after_BVW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dbefore_BVW: Tensor, dafter_BVW: Tensor) -> tuple[Tensor | None, ...]:
        (slots_RW,) = ctx.saved_tensors
        return *exchange_input_gradients(dbefore_BVW, dafter_BVW, slots_RW, ctx.group), None, None


def state_before(
    decay_BH: Tensor, added_BHPN: Tensor, initial_BHPN: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """Return the scan's state before this rank's slice, and after the chunk.

    This slice turns a state s into `decay * s + added`. `initial_BHPN` is the state before the chunk. All tensors have
    the same dtype.
    """
    return _StateBefore.apply(decay_BH, added_BHPN, initial_BHPN, group)


def exchange_states(
    decay_BH: Tensor, added_BHPN: Tensor, initial_BHPN: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """`state_before` without a graph."""
    rank, before_BHPN, state_BHPN = dist.get_rank(group), initial_BHPN, initial_BHPN
    for r, (decay, added) in enumerate(zip(*_gather([decay_BH, added_BHPN], group), strict=True)):
        before_BHPN = state_BHPN if r == rank else before_BHPN
        state_BHPN = torch.addcmul(added, state_BHPN, decay[..., None, None])
    return before_BHPN, state_BHPN


def exchange_state_gradients(
    decay_BH: Tensor, dbefore_BHPN: Tensor, dfinal_BHPN: Tensor | None, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the state after this rank's slice, and of the state before the chunk.

    Both include the effect of all later tokens. `dbefore_BHPN` is the gradient of the state before this slice through
    the outputs of this slice alone.
    """
    rank = dist.get_rank(group)
    d_BHPN = torch.zeros_like(dbefore_BHPN) if dfinal_BHPN is None else dfinal_BHPN
    dleaving_BHPN, gathered = d_BHPN, list(zip(*_gather([decay_BH, dbefore_BHPN], group), strict=True))
    for r, (decay, dbefore) in reversed(list(enumerate(gathered))):
        dleaving_BHPN = d_BHPN if r == rank else dleaving_BHPN
        d_BHPN = torch.addcmul(dbefore, d_BHPN, decay[..., None, None])
    return dleaving_BHPN, d_BHPN


class _StateBefore(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, decay_BH: Tensor, added_BHPN: Tensor, initial_BHPN: Tensor, group: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor]:
        before_BHPN, after_BHPN = exchange_states(decay_BH, added_BHPN, initial_BHPN, group)
        ctx.save_for_backward(decay_BH, before_BHPN)
        ctx.group = group
        # On rank 0 this is the initial state itself, and an output must not be an input.
        return before_BHPN.clone(), after_BHPN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dbefore_BHPN: Tensor, dafter_BHPN: Tensor) -> tuple[Tensor | None, ...]:
        decay_BH, before_BHPN = ctx.saved_tensors
        dadded_BHPN, dinitial_BHPN = exchange_state_gradients(decay_BH, dbefore_BHPN, dafter_BHPN, ctx.group)
        return (dadded_BHPN * before_BHPN).sum((-2, -1)), dadded_BHPN, dinitial_BHPN, None


def _gather(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
    """Gather tensors from all ranks in one message. Return each tensor stacked along a new first axis.

    All tensors have the same dtype, and the same shapes on every rank.
    """
    flat = torch.cat([t.flatten() for t in tensors])
    ranks = dist.get_world_size(group)
    gathered = flat.new_empty(ranks * len(flat))
    _all_gather(gathered, flat, group=group)
    columns = gathered.view(ranks, -1).split([t.numel() for t in tensors], dim=1)
    return [column.unflatten(1, t.shape) for column, t in zip(columns, tensors, strict=True)]

"""The SSD scan of Mamba-2 (arXiv 2405.21060, section 6) in plain torch, with its state as argument and result.

B batch, T tokens, H heads, P head width, G head groups, R heads of a head group (H = G R), N state size,
C blocks, Q tokens of a block (for pairs of tokens: Q the later token, S the earlier one).

    d_t     = softplus(dt_t + dt_bias)
    state_t = exp(d_t * A) * state_{t-1} + d_t * x_t (outer) B_t
    y_t     = state_t . C_t + D * x_t
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from ma2mba.ops.sequence_parallel import state_before


def ssd_scan(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor,
    dt_bias_H: Tensor,
    state_BHPN: Tensor,
    block: int,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the outputs (batch, tokens, heads, width) in the dtype of x, and the final state.

    `A_H` is negative. Decays and states are computed in the dtype of `state_BHPN`: fp32, or fp64 in tests. The result
    does not depend on `block`, which need not divide T. With a process group, the tokens are this rank's slice (T may
    be 0), and the states are the states before and after all slices (`ma2mba.ops.sequence_parallel`).
    """
    tokens, dtype = x_BTHP.shape[1], state_BHPN.dtype
    block = max(min(block, tokens), 1)
    heads_of = (B_BTGN.shape[2], -1)
    dt_BTH = F.softplus(dt_BTH.to(dtype) + dt_bias_H.to(dtype))
    u_BTHP = x_BTHP.to(dtype) * dt_BTH[..., None]
    u_BCGRQP = _blocks(u_BTHP.unflatten(2, heads_of), block).movedim(2, -2)
    B_BCGQN = _blocks(B_BTGN.to(dtype), block).transpose(2, 3)
    C_BCGQN = _blocks(C_BTGN.to(dtype), block).transpose(2, 3)
    decay_BCGRQ = _blocks((dt_BTH * A_H.to(dtype)).unflatten(2, heads_of), block).movedim(2, -1).cumsum(-1)

    y_BCGRQP = _within_blocks(u_BCGRQP, decay_BCGRQ, B_BCGQN, C_BCGQN)
    state_BGRPN = state_BHPN.unflatten(1, heads_of)
    entering_BCGRPN, final_BGRPN = _across_blocks(u_BCGRQP, decay_BCGRQ, B_BCGQN, state_BGRPN, group)
    carried_BCGRQP = C_BCGQN[:, :, :, None] @ entering_BCGRPN.transpose(-1, -2)
    y_BCGRQP = torch.addcmul(y_BCGRQP, carried_BCGRQP, decay_BCGRQ.exp()[..., None])

    y_BTHP = y_BCGRQP.movedim(-2, 2).flatten(3, 4).flatten(1, 2)[:, :tokens]
    return (y_BTHP + x_BTHP * D_H.to(dtype)[:, None]).to(x_BTHP.dtype), final_BGRPN.flatten(1, 2)


def _blocks(t_BTX: Tensor, block: int) -> Tensor:
    """Reshape (batch, tokens, ...) to (batch, blocks, tokens of a block, ...), padded with zeros.

    A padding token has dt = 0: it neither decays the state nor adds to it.
    """
    pad = -t_BTX.shape[1] % block if t_BTX.shape[1] else block
    if pad:
        t_BTX = torch.cat([t_BTX, t_BTX.new_zeros(t_BTX.shape[0], pad, *t_BTX.shape[2:])], dim=1)
    return t_BTX.unflatten(1, (-1, block))


def _within_blocks(u_BCGRQP: Tensor, decay_BCGRQ: Tensor, B_BCGQN: Tensor, C_BCGQN: Tensor) -> Tensor:
    """Return the contribution to each token from itself and from earlier tokens of its block."""
    block = decay_BCGRQ.shape[-1]
    later_QS = torch.ones(block, block, dtype=torch.bool, device=decay_BCGRQ.device).triu(1)
    log_decay_BCGRQS = (decay_BCGRQ[..., :, None] - decay_BCGRQ[..., None, :]).masked_fill(later_QS, float("-inf"))
    scores_BCGQS = C_BCGQN @ B_BCGQN.transpose(-1, -2)
    return (scores_BCGQS[:, :, :, None] * log_decay_BCGRQS.exp()) @ u_BCGRQP


def _across_blocks(
    u_BCGRQP: Tensor,
    decay_BCGRQ: Tensor,
    B_BCGQN: Tensor,
    state_BGRPN: Tensor,
    group: ProcessGroup | None,
) -> tuple[Tensor, Tensor]:
    """Return the state before every block, and the state after the last block of all ranks."""
    total_BCGR = decay_BCGRQ[..., -1]
    to_end_BCGRQ = (total_BCGR[..., None] - decay_BCGRQ).exp()
    added_BCGRPN = (u_BCGRQP * to_end_BCGRQ[..., None]).transpose(-1, -2) @ B_BCGQN[:, :, :, None]
    keep_BCGR11 = total_BCGR.exp()[..., None, None]
    if group is None:
        return _pass_on(keep_BCGR11, added_BCGRPN, state_BGRPN)
    _, own_BGRPN = _pass_on(keep_BCGR11, added_BCGRPN, torch.zeros_like(state_BGRPN))
    decay_BH = total_BCGR.sum(1).exp().flatten(1, 2)
    before_BHPN, after_BHPN = state_before(decay_BH, own_BGRPN.flatten(1, 2), state_BGRPN.flatten(1, 2), group)
    sizes = state_BGRPN.shape[1:3]
    entering_BCGRPN, _ = _pass_on(keep_BCGR11, added_BCGRPN, before_BHPN.unflatten(1, sizes))
    return entering_BCGRPN, after_BHPN.unflatten(1, sizes)


def _pass_on(keep_BCGR11: Tensor, added_BCGRPN: Tensor, state_BGRPN: Tensor) -> tuple[Tensor, Tensor]:
    """Return the state before every block, and the state after the last one."""
    entering = []
    for keep_BGR11, added_BGRPN in zip(keep_BCGR11.unbind(1), added_BCGRPN.unbind(1), strict=True):
        entering.append(state_BGRPN)
        state_BGRPN = torch.addcmul(added_BGRPN, state_BGRPN, keep_BGR11)
    return torch.stack(entering, dim=1), state_BGRPN

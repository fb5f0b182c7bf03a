"""The SSD scan on a GPU: mamba-ssm's kernels, combined for training in chunks.

Backward differs from mamba-ssm's own backward in two ways. The gradient of the first state stays in fp32, because every
chunk passes it to the chunk before. One kernel adds the terms of the gradient of the decays.

B batch, T tokens, H heads, P head width, G head groups, N state size, C blocks, Q tokens of a block.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from mamba_ssm.ops.triton.ssd_bmm import _bmm_chunk_bwd, _bmm_chunk_fwd
from mamba_ssm.ops.triton.ssd_chunk_scan import (
    _chunk_scan_bwd_dC,
    _chunk_scan_bwd_dcb,
    _chunk_scan_bwd_ddAcs_stable,
    _chunk_scan_bwd_dstates,
    _chunk_scan_fwd,
)
from mamba_ssm.ops.triton.ssd_chunk_state import (
    _chunk_cumsum_bwd,
    _chunk_cumsum_fwd,
    _chunk_state_bwd_db,
    _chunk_state_fwd,
)
from mamba_ssm.ops.triton.ssd_combined import _chunk_scan_chunk_state_bwd_dx
from mamba_ssm.ops.triton.ssd_state_passing import _state_passing_bwd_kernel, _state_passing_fwd
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from ma2mba.ops.sequence_parallel import exchange_state_gradients, exchange_states
from ma2mba.ops.triton.settings import choose_settings

TUNED_TOKENS = 4096


class Scanned(NamedTuple):
    """The inputs of a scan.

    x, B and C after the convolution and dt before its bias and softplus are in the model's dtype. A (negative), D,
    dt_bias and the first state are in fp32.
    """

    x_BTHP: Tensor
    dt_BTH: Tensor
    B_BTGN: Tensor
    C_BTGN: Tensor
    A_H: Tensor
    D_H: Tensor
    dt_bias_H: Tensor
    initial_BHPN: Tensor
    block: int


class Gradients(NamedTuple):
    """Gradients of parameters and of the first state, in fp32."""

    A_H: Tensor
    D_H: Tensor
    dt_bias_H: Tensor
    initial_BHPN: Tensor


def scan_forward(s: Scanned, group: ProcessGroup | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return y_BTHP in the dtype of x, the state after the last token, and the state before the first, in fp32.

    With a process group, the tokens are this rank's slice. `s.initial_BHPN` and the second result are then the states
    before and after all slices, and the third result is the state before this slice.
    """
    _settle(s.x_BTHP.shape[2:], s.B_BTGN.shape[2:], s.block, s.x_BTHP.dtype, s.x_BTHP.device)
    return _forward(s, group)


def _forward(s: Scanned, group: ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    decay_BHCQ, dt_BHCQ = _steps(s)
    added_BCHPN = _added(s, decay_BHCQ, dt_BHCQ)
    before_BHPN, after_BHPN = s.initial_BHPN, None
    if group is not None:
        _, own_BHPN = _entering(added_BCHPN, decay_BHCQ, torch.zeros_like(before_BHPN), s.C_BTGN.dtype)
        before_BHPN, after_BHPN = exchange_states(_decay_of_slice(decay_BHCQ), own_BHPN, before_BHPN, group)
    entering_BCHPN, final_BHPN = _entering(added_BCHPN, decay_BHCQ, before_BHPN, s.C_BTGN.dtype)
    scores_BCGQQ = _bmm_chunk_fwd(s.C_BTGN, s.B_BTGN, s.block, output_dtype=torch.float32)
    y_BTHP, _ = _chunk_scan_fwd(scores_BCGQQ, s.x_BTHP, dt_BHCQ, decay_BHCQ, s.C_BTGN, entering_BCHPN, D=s.D_H)
    return y_BTHP, final_BHPN if after_BHPN is None else after_BHPN, before_BHPN


def scan_backward(
    s: Scanned,
    dy_BTHP: Tensor,
    dfinal_BHPN: Tensor | None,
    dx_BTHP: Tensor,
    ddt_BTH: Tensor,
    dB: Tensor,
    dC: Tensor,
    *,
    group: ProcessGroup | None = None,
) -> Gradients:
    """Write the gradients of x, dt, B and C to the given tensors, which have the strides of x, dt, B and C.

    With a process group, `s.initial_BHPN` is the state before this rank's slice, `dfinal_BHPN` the gradient of the
    state after all slices, and the returned gradient is the gradient of the state before all slices.
    """
    decay_BHCQ, dt_BHCQ = _steps(s)
    scores_BCGQQ = _bmm_chunk_fwd(s.C_BTGN, s.B_BTGN, s.block, output_dtype=torch.float32)
    entering_BCHPN, _ = _entering(_added(s, decay_BHCQ, dt_BHCQ), decay_BHCQ, s.initial_BHPN, torch.float32)
    dentering_BCHPN = _chunk_scan_bwd_dstates(s.C_BTGN, decay_BHCQ, dy_BTHP, dtype=torch.float32)
    dfinal_BHPN, dinitial_BHPN = _of_all_slices(decay_BHCQ, dentering_BCHPN, dfinal_BHPN, group)
    passed = _pass_back(entering_BCHPN, decay_BHCQ, dentering_BCHPN, dfinal_BHPN, s.x_BTHP.dtype)
    groups = s.B_BTGN.shape[2]
    _, ddt_BHCQ, dD_H = _chunk_scan_chunk_state_bwd_dx(
        s.x_BTHP, dt_BHCQ, decay_BHCQ, s.B_BTGN, scores_BCGQQ, dy_BTHP, passed.dleaving_BCHPN, D=s.D_H, dx=dx_BTHP
    )
    dB_state, after_BHCQ = _chunk_state_bwd_db(
        s.x_BTHP, dt_BHCQ, decay_BHCQ, passed.dleaving_BCHPN, B=s.B_BTGN, ngroups=groups
    )
    dC_state, before_BHCQ = _chunk_scan_bwd_dC(passed.entering_BCHPN, decay_BHCQ, dy_BTHP, C=s.C_BTGN, ngroups=groups)
    dscores_BCGQQ = _chunk_scan_bwd_dcb(s.x_BTHP, dt_BHCQ, decay_BHCQ, dy_BTHP, ngroups=groups)
    _bmm_chunk_bwd(s.C_BTGN, dscores_BCGQQ, residual=dB_state, out=dB)
    _bmm_chunk_bwd(s.B_BTGN, dscores_BCGQQ.transpose(-1, -2), residual=dC_state, out=dC)
    within_BHCQ = _chunk_scan_bwd_ddAcs_stable(s.x_BTHP, dt_BHCQ, decay_BHCQ, dy_BTHP, scores_BCGQQ)
    ddecay_BHCQ = _join_decays(within_BHCQ, after_BHCQ, before_BHCQ, passed.dtotal_BHC)
    _, dA_H, ddt_bias_H = _chunk_cumsum_bwd(
        ddecay_BHCQ, ddt_BHCQ, s.dt_BTH, s.A_H, dt_bias=s.dt_bias_H, dt_softplus=True, ddt=ddt_BTH
    )
    return Gradients(dA_H, dD_H, ddt_bias_H, passed.dinitial_BHPN if dinitial_BHPN is None else dinitial_BHPN)


def _of_all_slices(
    decay_BHCQ: Tensor, dentering_BCHPN: Tensor, dfinal_BHPN: Tensor | None, group: ProcessGroup | None
) -> tuple[Tensor | None, Tensor | None]:
    """With a process group, return the gradients of the state after this rank's slice and of the state before all
    slices."""
    if group is None:
        return dfinal_BHPN, None
    own_BHPN = _weighted_sum(dentering_BCHPN, _decay_before(decay_BHCQ))
    return exchange_state_gradients(_decay_of_slice(decay_BHCQ), own_BHPN, dfinal_BHPN, group)


@cache
def _settle(heads: torch.Size, groups: torch.Size, block: int, dtype: torch.dtype, device: torch.device) -> None:
    """Choose the kernels' settings for these sizes on a chunk of ordinary length, before the first call.

    mamba-ssm's kernels keep the best settings of their first call for the whole process. A short first call would slow
    down all later calls.
    """
    choose_settings(heads[1], groups[1], block, device)
    generator = torch.Generator(device).manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float32, device=device)

    T = TUNED_TOKENS
    x, dt = draw(1, T, *heads).to(dtype), draw(1, T, heads[0]).to(dtype)
    B, C = draw(1, T, *groups).to(dtype), draw(1, T, *groups).to(dtype)
    state = draw(1, *heads, groups[1])
    s = Scanned(x, dt, B, C, -draw(heads[0]).exp(), draw(heads[0]), draw(heads[0]), state, block)
    y, final, _ = _forward(s, None)
    scan_backward(s, y, final, *(torch.empty_like(t) for t in (x, dt, B, C)))


def _steps(s: Scanned) -> tuple[Tensor, Tensor]:
    """Return the cumulative sums of dt A within blocks, and dt after softplus, both fp32 (B, H, C, Q)."""
    return _chunk_cumsum_fwd(s.dt_BTH, s.A_H, s.block, dt_bias=s.dt_bias_H, dt_softplus=True)


def _added(s: Scanned, decay_BHCQ: Tensor, dt_BHCQ: Tensor) -> Tensor:
    """Return the contribution of every block to the state, fp32 (B, C, H, P, N)."""
    return _chunk_state_fwd(s.B_BTGN, s.x_BTHP, dt_BHCQ, decay_BHCQ, states_in_fp32=True)


def _entering(
    added_BCHPN: Tensor, decay_BHCQ: Tensor, initial_BHPN: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the state before every block, and the state after the last block (fp32)."""
    entering, final = _state_passing_fwd(
        added_BCHPN.flatten(-2), decay_BHCQ[..., -1], initial_states=initial_BHPN.flatten(-2), out_dtype=dtype
    )
    sizes = added_BCHPN.shape[-2:]
    return entering.unflatten(-1, sizes), final.unflatten(-1, sizes)


def _decay_of_slice(decay_BHCQ: Tensor) -> Tensor:
    return decay_BHCQ[..., -1].sum(-1).exp()


def _decay_before(decay_BHCQ: Tensor) -> Tensor:
    """Return (B, H, C): the decay of a state from before the first block to before each block."""
    return F.pad(decay_BHCQ[:, :, :-1, -1].cumsum(-1), (1, 0)).exp()


def _weighted_sum(states_BCHPN: Tensor, weight_BHC: Tensor) -> Tensor:
    return (states_BCHPN * weight_BHC.transpose(1, 2)[..., None, None]).sum(1)


class _Passed(NamedTuple):
    """The states before the blocks in the model's dtype, and gradients: of the states after the blocks (in the model's
    dtype), of the total decay of every block, and of the state before the first block (both fp32)."""

    entering_BCHPN: Tensor
    dleaving_BCHPN: Tensor
    dtotal_BHC: Tensor
    dinitial_BHPN: Tensor


def _pass_back(
    entering_BCHPN: Tensor, decay_BHCQ: Tensor, dentering_BCHPN: Tensor, dfinal_BHPN: Tensor | None, dtype: torch.dtype
) -> _Passed:
    batch, blocks, heads, *sizes = entering_BCHPN.shape
    states, dstates = entering_BCHPN.flatten(-2), dentering_BCHPN.flatten(-2)
    dfinal = None if dfinal_BHPN is None else dfinal_BHPN.flatten(-2)
    width, total_BHC = states.shape[-1], decay_BHCQ[..., -1]
    rounded = states if states.dtype == dtype else torch.empty_like(states, dtype=dtype)
    dleaving = torch.empty_like(dstates, dtype=dtype)
    dinitial = torch.empty(batch, heads, width, dtype=torch.float32, device=states.device)
    most_partial = -(-width // 64)  # 64: the kernel's smallest BLOCK_SIZE
    dtotal_BHCX = torch.empty(batch, heads, blocks, most_partial, dtype=torch.float32, device=states.device)
    with torch.cuda.device(states.device):
        _state_passing_bwd_kernel[lambda meta: (triton.cdiv(width, meta["BLOCK_SIZE"]), batch, heads)](
            *(dstates, states, total_BHC, dfinal, None),
            *(dleaving, dtotal_BHCX, dinitial, None if rounded is states else rounded),
            *(width, blocks, 0, 0),
            *dstates.stride(),
            *states.stride(),
            *(total_BHC.stride(0), total_BHC.stride(2), total_BHC.stride(1)),
            *((0, 0, 0) if dfinal is None else dfinal.stride()),
            *(0, 0),
            *dleaving.stride(),
            *(dtotal_BHCX.stride(0), dtotal_BHCX.stride(2), dtotal_BHCX.stride(1)),
            *dinitial.stride(),
            CONVERT_STATES=rounded is not states,
            HAS_DFINAL_STATES=dfinal is not None,
            HAS_DINITSTATES=True,
            HAS_SEQ_IDX=False,
        )
    partial = triton.cdiv(width, _state_passing_bwd_kernel.best_config.kwargs["BLOCK_SIZE"])
    dtotal_BHC = dtotal_BHCX[..., :partial].sum(-1)
    return _Passed(
        rounded.unflatten(-1, sizes), dleaving.unflatten(-1, sizes), dtotal_BHC, dinitial.unflatten(-1, sizes)
    )


@triton.jit
def _join(within_ptr, after_ptr, before_ptr, total_ptr, Q, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < Q
    at = row.to(tl.int64) * Q + columns
    before = tl.load(before_ptr + at, mask=inside, other=0.0)
    before += tl.where(columns == Q - 1, tl.load(total_ptr + row), 0.0)
    joined = tl.load(within_ptr + at, mask=inside, other=0.0) + tl.load(after_ptr + at, mask=inside, other=0.0)
    tl.store(within_ptr + at, joined + tl.cumsum(before, axis=0, reverse=True), mask=inside)


def _join_decays(within_BHCQ: Tensor, after_BHCQ: Tensor, before_BHCQ: Tensor, total_BHC: Tensor) -> Tensor:
    """Return the gradient of every token's dt A.

    It has three terms: from pairs of tokens within a block, from the state after the block, and (summed from the
    block's end) from the state before the block.
    """
    block = within_BHCQ.shape[-1]
    _join[(total_BHC.numel(),)](
        within_BHCQ, after_BHCQ, before_BHCQ, total_BHC, block, BLOCK=triton.next_power_of_2(block), num_warps=2
    )
    return within_BHCQ

"""A Mamba-2 layer (arXiv 2405.21060), its states as arguments and results. Parameter names are state-spaces/mamba's.

B batch, T tokens, D model width, X outputs of the first projection (z, x, B, C, dt side by side), I inner width,
V channels of the convolution, W taps of the convolution less one, S its inputs (W + T), H heads, P head width, G head
groups, R heads of a group (H = G R), N state size, C blocks of the scan, Q tokens of a block (for pairs of tokens:
Q the later token, S the earlier one).

Rows that are shorter are padded on the left. `pads_B` counts their padding: such a token leaves both states exactly as
they were, and the convolution skips it.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from .configuration_video_ma2mba import VideoMa2mbaTextConfig

logger = logging.get_logger(__name__)
OFFSETS = 2**29
"""The most elements of an input of the GPU kernels. Their offsets have 31 bits, in tensors up to 3 times as wide."""


class Kernels(NamedTuple):
    convolve: Callable[..., Tensor]
    scan: Callable[..., tuple[Tensor, Tensor]]
    step: Callable[..., Tensor]


@cache
def kernels() -> Kernels | None:
    """Return the GPU kernels of causal-conv1d and mamba-ssm. Warn and return None if they are not installed."""
    try:
        from causal_conv1d import causal_conv1d_fn
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError as error:
        logger.warning(f"The GPU runs plain PyTorch, slower: install mamba-ssm and causal-conv1d ({error})")
        return None
    return Kernels(causal_conv1d_fn, mamba_chunk_scan_combined, selective_state_update)


def kernels_for(x: Tensor) -> Kernels | None:
    """Return the kernels if they run on this tensor. In fp32 they would round to tf32, so plain torch runs."""
    takes = x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and x.numel() < OFFSETS
    return kernels() if takes else None


class VideoMa2mbaNorm(nn.Module):
    """Root mean square norm. Computes in fp32 or wider and returns the dtype of the weight."""

    def __init__(self, width: int, eps: float, groups: int = 1):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps, self.groups = eps, groups

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """Normalise x, or x * SiLU(gate). The width is split into groups, and each one is normalised alone."""
        high = torch.promote_types(x.dtype, torch.float32)
        x = x.to(high)
        if gate is not None:
            x = x * F.silu(gate.to(high))
        grouped = x.unflatten(-1, (self.groups, -1))
        grouped = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + self.eps)
        return (grouped.flatten(-2) * self.weight.to(high)).to(self.weight.dtype)


class VideoMa2mbaConv(nn.Conv1d):
    """A causal depthwise convolution and SiLU, with its last inputs as argument and result."""

    def __init__(self, channels: int, taps: int):
        super().__init__(channels, channels, taps, groups=channels)

    def forward(self, x_BTV: Tensor, tail_BWV: Tensor | None, pads_B: Tensor | None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        (batch, tokens, channels), kept = x_BTV.shape, self.kernel_size[0] - 1
        tail_BWV = x_BTV.new_zeros(batch, kept, channels) if tail_BWV is None else tail_BWV.to(x_BTV.dtype)
        inputs_BSV = torch.cat([tail_BWV, x_BTV], dim=1)
        if pads_B is not None:  # the last inputs come right before the first token that is no padding
            places_BW1 = (pads_B[:, None] + torch.arange(kept, device=pads_B.device))[..., None]
            inputs_BSV = inputs_BSV.scatter(1, places_BW1.expand(-1, -1, channels), tail_BWV)
        tail_BWV = inputs_BSV[:, tokens:].clone()  # a view would keep all inputs in memory
        return self._convolve(inputs_BSV, tokens), tail_BWV

    def _convolve(self, inputs_BSV: Tensor, tokens: int) -> Tensor:
        taps = self.kernel_size[0]
        assert self.bias is not None
        gpu = kernels_for(inputs_BSV)
        if gpu and 2 <= taps <= 4 and inputs_BSV.shape[2] % 8 == 0:
            dtype = inputs_BSV.dtype
            weight_VW, bias_V = self.weight[:, 0].to(dtype), self.bias.to(dtype)
            y_BVS = gpu.convolve(inputs_BSV.transpose(1, 2), weight_VW, bias_V, activation="silu")
            return y_BVS[:, :, taps - 1 :].transpose(1, 2)
        high = torch.promote_types(inputs_BSV.dtype, torch.float32)
        weight_VW = self.weight[:, 0].to(high)
        y_BTV = self.bias.to(high) + inputs_BSV[:, :tokens] * weight_VW[:, 0]
        for tap in range(1, taps):
            y_BTV = y_BTV + inputs_BSV[:, tap : tap + tokens] * weight_VW[:, tap]
        return F.silu(y_BTV).to(inputs_BSV.dtype)


class VideoMa2mbaMixer(nn.Module):
    """Projection, convolution, SSD scan, gated norm, projection."""

    def __init__(self, config: VideoMa2mbaTextConfig):
        super().__init__()
        self.heads, self.headdim, self.block = config.heads, config.headdim, config.ssd_block
        self.ngroups, self.d_state, inner = config.ngroups, config.d_state, config.d_inner
        self.sizes = [inner, config.conv_width, self.heads]
        self.in_proj = nn.Linear(config.d_model, sum(self.sizes), bias=False)
        self.conv1d = VideoMa2mbaConv(config.conv_width, config.d_conv)
        # In fp32 in a model of bf16 too: rounding them changes how long a head remembers.
        high = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.dt_bias, self.A_log, self.D = (nn.Parameter(torch.empty(self.heads, dtype=high)) for _ in range(3))
        self.norm = VideoMa2mbaNorm(inner, config.norm_eps, self.ngroups)
        self.out_proj = nn.Linear(inner, config.d_model, bias=False)

    def forward(
        self, u_BTD: Tensor, conv_BWV: Tensor | None, ssm_BHPN: Tensor | None, pads_B: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output y_BTD and both states after the last token. A state is None at the start of a sequence."""
        z_BTI, xBC_BTV, dt_BTH = self.in_proj(u_BTD).split(self.sizes, dim=-1)
        xBC_BTV, conv_BWV = self.conv1d(xBC_BTV, conv_BWV, pads_B)
        keys = self.ngroups * self.d_state
        x_BTI, B_BTK, C_BTK = xBC_BTV.split([self.sizes[0], keys, keys], dim=-1)
        if pads_B is not None:  # then softplus is 0: the token neither decays the state nor adds to it
            pad_BT1 = (torch.arange(u_BTD.shape[1], device=u_BTD.device) < pads_B[:, None])[..., None]
            dt_BTH = dt_BTH.masked_fill(pad_BT1, -math.inf)
        if ssm_BHPN is None:
            high = torch.promote_types(x_BTI.dtype, torch.float32)
            ssm_BHPN = x_BTI.new_zeros(len(x_BTI), self.heads, self.headdim, self.d_state, dtype=high)
        scan = self._step if u_BTD.shape[1] == 1 and pads_B is None else self._scan
        # Autocast would run the scan's products in bf16.
        with torch.autocast(device_type=u_BTD.device.type, enabled=False):
            y_BTHP, ssm_BHPN = scan(
                x_BTI.unflatten(-1, (self.heads, self.headdim)),
                dt_BTH,
                B_BTK.unflatten(-1, (self.ngroups, self.d_state)),
                C_BTK.unflatten(-1, (self.ngroups, self.d_state)),
                ssm_BHPN,
            )
        return self.out_proj(self.norm(y_BTHP.flatten(-2), z_BTI)), conv_BWV, ssm_BHPN

    def _scan(
        self, x_BTHP: Tensor, dt_BTH: Tensor, B_BTGN: Tensor, C_BTGN: Tensor, ssm_BHPN: Tensor
    ) -> tuple[Tensor, Tensor]:
        A_H = -torch.exp(self.A_log.to(ssm_BHPN.dtype))
        gpu = kernels_for(x_BTHP)
        if gpu:
            return gpu.scan(
                *(x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, self.block),
                D=self.D.float(),
                dt_bias=self.dt_bias.float(),
                initial_states=ssm_BHPN,
                dt_softplus=True,
                return_final_states=True,
            )
        return ssd_scan(x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, self.D, self.dt_bias, ssm_BHPN, self.block)

    def _step(
        self, x_B1HP: Tensor, dt_B1H: Tensor, B_B1GN: Tensor, C_B1GN: Tensor, ssm_BHPN: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `_scan`, for one token."""
        high, sizes = ssm_BHPN.dtype, ssm_BHPN.shape[1:]
        x_BHP, dt_BH, B_BGN, C_BGN = x_B1HP[:, 0], dt_B1H[:, 0], B_B1GN[:, 0], C_B1GN[:, 0]
        A_H, D_H, dt_bias_H = -torch.exp(self.A_log.to(high)), self.D.to(high), self.dt_bias.to(high)
        gpu = kernels_for(x_B1HP)
        if gpu and not torch.is_grad_enabled():
            ssm_BHPN = ssm_BHPN.clone()  # the kernel overwrites it
            y_BHP = gpu.step(
                *(ssm_BHPN, x_BHP, dt_BH[..., None].expand(-1, -1, sizes[1]), A_H[:, None, None].expand(sizes)),
                *(B_BGN, C_BGN, D_H[:, None].expand(sizes[:2])),
                dt_bias=dt_bias_H[:, None].expand(sizes[:2]),
                dt_softplus=True,
            )
            return y_BHP[:, None], ssm_BHPN
        groups_of = (self.ngroups, -1)
        dt_BH = F.softplus(dt_BH.to(high) + dt_bias_H)
        u_BGRP = (x_BHP.to(high) * dt_BH[..., None]).unflatten(1, groups_of)
        ssm_BGRPN = (ssm_BHPN * torch.exp(dt_BH * A_H)[..., None, None]).unflatten(1, groups_of)
        ssm_BGRPN = ssm_BGRPN + u_BGRP[..., None] * B_BGN.to(high)[:, :, None, None]
        y_BHP = (ssm_BGRPN @ C_BGN.to(high)[:, :, None, :, None])[..., 0].flatten(1, 2) + x_BHP * D_H[:, None]
        return y_BHP.to(x_BHP.dtype)[:, None], ssm_BGRPN.flatten(1, 2)


class VideoMa2mbaLayer(GradientCheckpointingLayer):
    """Norm, mixer, residual. The residual stream x_BTD is in fp32 or wider."""

    def __init__(self, config: VideoMa2mbaTextConfig):
        super().__init__()
        self.norm = VideoMa2mbaNorm(config.d_model, config.norm_eps)
        self.mixer = VideoMa2mbaMixer(config)

    def forward(
        self, x_BTD: Tensor, conv_BWV: Tensor | None, ssm_BHPN: Tensor | None, pads_B: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y_BTD, conv_BWV, ssm_BHPN = self.mixer(self.norm(x_BTD), conv_BWV, ssm_BHPN, pads_B)
        return x_BTD + y_BTD, conv_BWV, ssm_BHPN


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
) -> tuple[Tensor, Tensor]:
    """Return the outputs (batch, tokens, heads, width) in the dtype of x, and the final state.

    d_t = softplus(dt_t + dt_bias); state_t = exp(d_t A) state_{t-1} + d_t x_t (outer) B_t; y_t = state_t C_t + D x_t.
    Decays and states are computed in the dtype of the state. The result does not depend on `block`.
    """
    tokens, dtype, heads_of = x_BTHP.shape[1], state_BHPN.dtype, (B_BTGN.shape[2], -1)
    block = max(min(block, tokens), 1)
    dt_BTH = F.softplus(dt_BTH.to(dtype) + dt_bias_H.to(dtype))
    u_BTHP = x_BTHP.to(dtype) * dt_BTH[..., None]
    u_BCGRQP = _blocks(u_BTHP.unflatten(2, heads_of), block).movedim(2, -2)
    B_BCGQN = _blocks(B_BTGN.to(dtype), block).transpose(2, 3)
    C_BCGQN = _blocks(C_BTGN.to(dtype), block).transpose(2, 3)
    decay_BCGRQ = _blocks((dt_BTH * A_H.to(dtype)).unflatten(2, heads_of), block).movedim(2, -1).cumsum(-1)

    y_BCGRQP = _within_blocks(u_BCGRQP, decay_BCGRQ, B_BCGQN, C_BCGQN)
    entering_BCGRPN, final_BGRPN = _across_blocks(u_BCGRQP, decay_BCGRQ, B_BCGQN, state_BHPN.unflatten(1, heads_of))
    carried_BCGRQP = C_BCGQN[:, :, :, None] @ entering_BCGRPN.transpose(-1, -2)
    y_BCGRQP = torch.addcmul(y_BCGRQP, carried_BCGRQP, decay_BCGRQ.exp()[..., None])

    y_BTHP = y_BCGRQP.movedim(-2, 2).flatten(3, 4).flatten(1, 2)[:, :tokens]
    return (y_BTHP + x_BTHP * D_H.to(dtype)[:, None]).to(x_BTHP.dtype), final_BGRPN.flatten(1, 2)


def _blocks(t_BTX: Tensor, block: int) -> Tensor:
    """Reshape (batch, tokens, ...) to (batch, blocks, tokens of a block, ...), padded with zeros: their dt is 0."""
    pad = -t_BTX.shape[1] % block
    if pad:
        t_BTX = torch.cat([t_BTX, t_BTX.new_zeros(t_BTX.shape[0], pad, *t_BTX.shape[2:])], dim=1)
    return t_BTX.unflatten(1, (-1, block))


def _within_blocks(u_BCGRQP: Tensor, decay_BCGRQ: Tensor, B_BCGQN: Tensor, C_BCGQN: Tensor) -> Tensor:
    """Return the contribution to each token from itself and from earlier tokens of its block."""
    block = decay_BCGRQ.shape[-1]
    later_QS = torch.ones(block, block, dtype=torch.bool, device=decay_BCGRQ.device).triu(1)
    log_decay_BCGRQS = (decay_BCGRQ[..., :, None] - decay_BCGRQ[..., None, :]).masked_fill(later_QS, -math.inf)
    scores_BCGQS = C_BCGQN @ B_BCGQN.transpose(-1, -2)
    return (scores_BCGQS[:, :, :, None] * log_decay_BCGRQS.exp()) @ u_BCGRQP


def _across_blocks(
    u_BCGRQP: Tensor, decay_BCGRQ: Tensor, B_BCGQN: Tensor, state_BGRPN: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the state before every block, and the state after the last block."""
    total_BCGR = decay_BCGRQ[..., -1]
    to_end_BCGRQ = (total_BCGR[..., None] - decay_BCGRQ).exp()
    added_BCGRPN = (u_BCGRQP * to_end_BCGRQ[..., None]).transpose(-1, -2) @ B_BCGQN[:, :, :, None]
    keep_BCGR11 = total_BCGR.exp()[..., None, None]
    entering = []
    for keep_BGR11, added_BGRPN in zip(keep_BCGR11.unbind(1), added_BCGRPN.unbind(1), strict=True):
        entering.append(state_BGRPN)
        state_BGRPN = torch.addcmul(added_BGRPN, state_BGRPN, keep_BGR11)
    return torch.stack(entering, dim=1), state_BGRPN

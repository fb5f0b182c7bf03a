"""A Mamba-2 layer for one token of B sequences, in plain torch. Every other implementation is compared with this one.

B sequences, D model width, X outputs of the first projection (z, x, B, C, dt side by side), I inner width,
V channels of the convolution, W taps less one, H heads, P head width, G head groups, N state size.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ma2mba.ops.types import LayerShape, LayerWeights


class ReferenceStep:
    """`ma2mba.ops.open_step` in plain torch, with few operations a call: they dominate the time of a small model."""

    in_place = False

    def __init__(self, weights: LayerWeights, shape: LayerShape, rows: int):
        w, high = weights, torch.promote_types(weights.in_proj_XD.dtype, torch.float32)
        heads, inner, (channels, _, taps) = w.D_H.numel(), w.gated_norm_I.numel(), w.conv_V1W.shape
        keys = shape.ngroups * shape.d_state
        self._weights, self._shape = weights, shape
        self._sizes = [inner, inner + 2 * keys, heads], [inner, keys, keys]
        self._taps_WV, self._bias_V = w.conv_V1W[:, 0].t().to(high).contiguous(), w.conv_bias_V.to(high)
        self._dt_bias_H, self._A_H = w.dt_bias_H.to(high), -torch.exp(w.A_log_H.to(high))
        self._D_HP = w.D_H.to(high)[:, None].expand(-1, shape.headdim)
        self._norm_D, self._gated_norm_I = w.norm_D.to(high), w.gated_norm_I.to(high)
        self._inputs_BWV = w.in_proj_XD.new_zeros(rows, taps, channels)
        self._ssm_BHPN = w.in_proj_XD.new_zeros(rows, heads, shape.headdim, shape.d_state, dtype=high)

    def __call__(self, x_BD: Tensor) -> Tensor:
        w, (projected, convolved) = self._weights, self._sizes
        u_BD = F.rms_norm(x_BD, self._norm_D.shape, self._norm_D, self._shape.eps)
        z_BI, xBC_BV, dt_BH = F.linear(u_BD.to(w.in_proj_XD.dtype), w.in_proj_XD).split(projected, dim=-1)
        x_BI, B_BX, C_BX = self._convolve(xBC_BV).split(convolved, dim=-1)
        y_BI = self._scan(x_BI, dt_BH, B_BX, C_BX) * F.silu(z_BI.to(x_BI.dtype))
        grouped = y_BI.unflatten(-1, (self._shape.ngroups, -1))
        normed_BI = F.rms_norm(grouped, grouped.shape[-1:], None, self._shape.eps).flatten(-2) * self._gated_norm_I
        return x_BD + F.linear(normed_BI.to(w.out_proj_DI.dtype), w.out_proj_DI)

    def _convolve(self, xBC_BV: Tensor) -> Tensor:
        inputs_BWV = torch.cat([self._inputs_BWV[: len(xBC_BV), 1:], xBC_BV[:, None]], dim=1)
        if len(xBC_BV) == len(self._inputs_BWV):
            self._inputs_BWV = inputs_BWV
        else:
            self._inputs_BWV[: len(xBC_BV)] = inputs_BWV
        return F.silu((inputs_BWV * self._taps_WV).sum(1).add_(self._bias_V))

    def _scan(self, x_BI: Tensor, dt_BH: Tensor, B_BX: Tensor, C_BX: Tensor) -> Tensor:
        """Advance the state, and return its output: two products of matrices for each sequence and head group."""
        ssm_BHPN, groups = self._ssm_BHPN[: len(x_BI)], len(x_BI) * self._shape.ngroups
        dt_BH = F.softplus(dt_BH + self._dt_bias_H)
        x_BHP = x_BI.view(*dt_BH.shape, -1)
        u_SP1 = (x_BHP * dt_BH[..., None]).view(groups, -1, 1)
        ssm_SPN = ssm_BHPN.mul_(torch.exp(dt_BH * self._A_H)[..., None, None]).view(groups, u_SP1.shape[1], -1)
        ssm_SPN.baddbmm_(u_SP1, B_BX.reshape(groups, 1, -1))
        y_BHP = torch.bmm(ssm_SPN, C_BX.reshape(groups, -1, 1)).view(x_BHP.shape)
        return y_BHP.addcmul_(x_BHP, self._D_HP).flatten(1)

    def load(self, row: int, state: tuple[Tensor, ...]) -> None:
        conv_1VW, ssm_1HPN = state
        self._inputs_BWV[row, 1:] = conv_1VW[0].t()
        self._ssm_BHPN[row] = ssm_1HPN[0]

    def state(self, row: int) -> tuple[Tensor, Tensor]:
        return self._inputs_BWV[row : row + 1, 1:].clone().transpose(1, 2), self._ssm_BHPN[row : row + 1].clone()

"""The recurrent core of a Mamba-2 layer, between its two projections: convolution, SSD scan, gated norm. The one door.

B batch, T tokens, X outputs of the first projection (z, x, B, C, dt side by side: 2 I + 2 G N + H), I inner width,
V channels of the convolution (I + 2 G N), W taps, H heads, P head width, G groups, N state size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ma2mba.ops.backend import backend
from ma2mba.ops.conv import causal_conv
from ma2mba.ops.norm import rms_norm_reference
from ma2mba.ops.ssd import ssd_scan


@dataclass(frozen=True)
class MixerShape:
    """What the sizes of the tensors do not tell."""

    headdim: int
    ngroups: int
    d_state: int
    block: int
    eps: float


@dataclass(frozen=True)
class MixerWeights:
    """The parameters of the core, as state-spaces/mamba names and shapes them."""

    conv_V1W: Tensor
    conv_bias_V: Tensor
    dt_bias_H: Tensor
    A_log_H: Tensor
    D_H: Tensor
    norm_I: Tensor


def mixer(
    zxbcdt_BTX: Tensor, weights: MixerWeights, conv_BVW: Tensor, ssm_BHPN: Tensor, shape: MixerShape
) -> tuple[Tensor, Tensor, Tensor]:
    """y_BTI, and the states after the last token: conv_BVW (the W - 1 last inputs) and ssm_BHPN (fp32 or wider).

    Runs the kernels of mamba-ssm and causal-conv1d on a GPU that has them, plain torch elsewhere (`backend`).
    """
    if backend(zxbcdt_BTX.device) == "triton":
        from ma2mba.ops.kernels import mixer_kernels

        return mixer_kernels(zxbcdt_BTX, weights, conv_BVW, ssm_BHPN, shape)
    return mixer_reference(zxbcdt_BTX, weights, conv_BVW, ssm_BHPN, shape)


def mixer_reference(
    zxbcdt_BTX: Tensor, weights: MixerWeights, conv_BVW: Tensor, ssm_BHPN: Tensor, shape: MixerShape
) -> tuple[Tensor, Tensor, Tensor]:
    """`mixer` in plain torch: what the kernels are checked against."""
    heads, inner, groups = weights.D_H.shape[0], weights.norm_I.shape[0], shape.ngroups * shape.d_state
    z_BTI, xBC_BTV, dt_BTH = zxbcdt_BTX.split([inner, inner + 2 * groups, heads], dim=-1)
    xBC_BTV, conv_BVW = causal_conv(xBC_BTV, weights.conv_V1W[:, 0], weights.conv_bias_V, conv_BVW)
    x_BTI, B_BTX, C_BTX = xBC_BTV.split([inner, groups, groups], dim=-1)
    y_BTHP, ssm_BHPN = ssd_scan(
        x_BTI.unflatten(-1, (heads, shape.headdim)),
        dt_BTH,
        -torch.exp(weights.A_log_H.to(ssm_BHPN.dtype)),
        B_BTX.unflatten(-1, (shape.ngroups, shape.d_state)),
        C_BTX.unflatten(-1, (shape.ngroups, shape.d_state)),
        weights.D_H,
        weights.dt_bias_H,
        ssm_BHPN,
        shape.block,
    )
    return rms_norm_reference(y_BTHP.flatten(-2), weights.norm_I, shape.eps, z_BTI, shape.ngroups), conv_BVW, ssm_BHPN

"""A Mamba-2 layer in plain torch. Every other implementation is compared with this one.

B batch, T tokens, D model width, X outputs of the first projection (z, x, B, C, dt side by side: 2 I + 2 G N + H),
I inner width, V channels of the convolution (I + 2 G N), W taps less one, H heads, P head width, G head groups,
N state size.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from ma2mba.ops.reference.conv import causal_conv
from ma2mba.ops.reference.norm import rms_norm
from ma2mba.ops.reference.ssd import ssd_scan
from ma2mba.ops.types import LayerShape, LayerWeights


def mamba2_layer_reference(
    x_BTD: Tensor,
    conv_BVW: Tensor,
    ssm_BHPN: Tensor,
    weights: LayerWeights,
    shape: LayerShape,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`ma2mba.ops.mamba2_layer` in plain torch."""
    heads, inner, keys = weights.D_H.shape[0], weights.gated_norm_I.shape[0], shape.ngroups * shape.d_state
    zxbcdt_BTX = F.linear(rms_norm(x_BTD, weights.norm_D, shape.eps), weights.in_proj_XD)
    z_BTI, xBC_BTV, dt_BTH = zxbcdt_BTX.split([inner, inner + 2 * keys, heads], dim=-1)
    xBC_BTV, conv_BVW = causal_conv(xBC_BTV, weights.conv_V1W[:, 0], weights.conv_bias_V, conv_BVW, group)
    x_BTI, B_BTX, C_BTX = xBC_BTV.split([inner, keys, keys], dim=-1)
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
        group,
    )
    y_BTI = rms_norm(y_BTHP.flatten(-2), weights.gated_norm_I, shape.eps, z_BTI, shape.ngroups)
    return x_BTD + F.linear(y_BTI, weights.out_proj_DI), conv_BVW, ssm_BHPN

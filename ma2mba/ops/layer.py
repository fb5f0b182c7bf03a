"""A Mamba-2 layer with its residual: norm, projection, convolution, SSD scan, gated norm, projection. The one door.

B batch, T tokens, D model width, X outputs of the first projection (z, x, B, C, dt side by side: 2 I + 2 G N + H),
I inner width, V channels of the convolution (I + 2 G N), W taps less one, H heads, P head width, G groups,
N state size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from ma2mba.ops.backend import backend
from ma2mba.ops.conv import causal_conv
from ma2mba.ops.norm import rms_norm
from ma2mba.ops.ssd import ssd_scan

OFFSETS = 2**31
"""A GPU's kernels compute element offsets in 32 signed bits."""


@dataclass(frozen=True)
class LayerShape:
    """What the sizes of the tensors do not tell."""

    headdim: int
    ngroups: int
    d_state: int
    block: int
    eps: float


@dataclass(frozen=True)
class LayerWeights:
    """The parameters of a layer, as state-spaces/mamba shapes them (`conv_V1W` has all taps)."""

    norm_D: Tensor
    in_proj_XD: Tensor
    conv_V1W: Tensor
    conv_bias_V: Tensor
    dt_bias_H: Tensor
    A_log_H: Tensor
    D_H: Tensor
    gated_norm_I: Tensor
    out_proj_DI: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)


def most_tokens(batch: int, width: int, block: int) -> int:
    """The most tokens that one call of a GPU's kernels may see: the widest tensor (batch, tokens, width), the first
    projection's output, keeps every offset below 2^31."""
    return max(block, (OFFSETS - 1) // (batch * width) // block * block)


def mamba2_layer(
    x_BTD: Tensor,
    conv_BVW: Tensor,
    ssm_BHPN: Tensor,
    weights: LayerWeights,
    shape: LayerShape,
    product_BTD: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """x after the layer, and the states after its last token: the last inputs of the convolution, the SSM's state.

    x_BTD is fp32 (or fp64), the weights fp32 or bf16, ssm_BHPN fp32 or fp64. Runs the kernels of mamba-ssm and
    causal-conv1d on a GPU that has them, plain torch elsewhere: `ma2mba.ops.backend` tells which.
    product_BTD is what `mamba2_layer_product` gave for the same inputs; the last projection is spared then.
    With a group, x is this rank's part of the tokens, and the states are those before and after all parts
    (`ma2mba.ops.neighbours`).
    """
    which = backend(x_BTD.device)
    if which == "triton":
        from ma2mba.ops.layer_kernels import layer_kernels

        return layer_kernels(x_BTD, conv_BVW, ssm_BHPN, weights, shape, product_BTD, group)
    if which == "shadow":
        from ma2mba.ops.shadow import layer_shadow

        return layer_shadow(x_BTD, conv_BVW, ssm_BHPN, weights, shape, product_BTD)
    return mamba2_layer_reference(x_BTD, conv_BVW, ssm_BHPN, weights, shape, group)


def mamba2_layer_product(
    x_BTD: Tensor,
    conv_BVW: Tensor,
    ssm_BHPN: Tensor,
    weights: LayerWeights,
    shape: LayerShape,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`mamba2_layer` without gradients, and what its last projection added to x, in the weights' dtype.

    None where that would spare nothing: in plain torch, and in calls that the kernels have to split.
    """
    which = backend(x_BTD.device)
    if which == "triton":
        from ma2mba.ops.layer_kernels import layer_product

        return layer_product(x_BTD, conv_BVW, ssm_BHPN, weights, shape, group)
    if which == "shadow":
        from ma2mba.ops.shadow import layer_shadow

        return *layer_shadow(x_BTD, conv_BVW, ssm_BHPN, weights, shape), x_BTD.to(weights.norm_D.dtype)
    return *mamba2_layer_reference(x_BTD, conv_BVW, ssm_BHPN, weights, shape, group), None


def mamba2_layer_reference(
    x_BTD: Tensor,
    conv_BVW: Tensor,
    ssm_BHPN: Tensor,
    weights: LayerWeights,
    shape: LayerShape,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`mamba2_layer` in plain torch: what the kernels are checked against."""
    heads, inner, groups = weights.D_H.shape[0], weights.gated_norm_I.shape[0], shape.ngroups * shape.d_state
    zxbcdt_BTX = F.linear(rms_norm(x_BTD, weights.norm_D, shape.eps), weights.in_proj_XD)
    z_BTI, xBC_BTV, dt_BTH = zxbcdt_BTX.split([inner, inner + 2 * groups, heads], dim=-1)
    xBC_BTV, conv_BVW = causal_conv(xBC_BTV, weights.conv_V1W[:, 0], weights.conv_bias_V, conv_BVW, group)
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
        group,
    )
    y_BTI = rms_norm(y_BTHP.flatten(-2), weights.gated_norm_I, shape.eps, z_BTI, shape.ngroups)
    return x_BTD + F.linear(y_BTI, weights.out_proj_DI), conv_BVW, ssm_BHPN

"""The recurrent core on a GPU: the kernels of causal-conv1d and mamba-ssm, with states, as one autograd function.

B batch, T tokens, X outputs of the first projection (z, x, B, C, dt side by side: 2 I + 2 G N + H), I inner width,
V channels of the convolution (I + 2 G N), W taps, H heads, P head width, G groups, N state size.

Backward writes the gradients of z, x, B, C and dt into one tensor, as mamba-ssm's fused function does, and runs the
convolution again instead of keeping its output.
"""

from typing import Any, NamedTuple

import torch
from causal_conv1d.cpp_functions import causal_conv1d_bwd_function, causal_conv1d_fwd_function
from mamba_ssm.ops.triton.layernorm_gated import _layer_norm_bwd, _layer_norm_fwd
from mamba_ssm.ops.triton.ssd_combined import _mamba_chunk_scan_combined_bwd, _mamba_chunk_scan_combined_fwd
from torch import Tensor

from ma2mba.ops.mixer import MixerShape, MixerWeights

OFFSETS = 2**31
"""The kernels compute element offsets in 32 signed bits."""


def most_tokens(batch: int, width: int, block: int) -> int:
    """The most tokens that one call may see: the widest tensor (batch, tokens, width) keeps every offset below 2^31."""
    return max(block, OFFSETS // (batch * width) // block * block)


def mixer_kernels(
    zxbcdt_BTX: Tensor, weights: MixerWeights, conv_BVW: Tensor, ssm_BHPN: Tensor, shape: MixerShape
) -> tuple[Tensor, Tensor, Tensor]:
    """`ma2mba.ops.mixer` for tensors on a GPU; a call longer than 32-bit offsets reach is split along the tokens."""
    parameters = (
        weights.conv_V1W,
        weights.conv_bias_V,
        weights.dt_bias_H,
        weights.A_log_H,
        weights.D_H,
        weights.norm_I,
    )
    outputs = []
    limit = most_tokens(zxbcdt_BTX.shape[0], zxbcdt_BTX.shape[2], shape.block)
    for part_BTX in zxbcdt_BTX.split(limit, dim=1):
        y_BTI, conv_BVW, ssm_BHPN = _Mixer.apply(part_BTX, conv_BVW, ssm_BHPN, shape, *parameters)
        outputs.append(y_BTI)
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), conv_BVW, ssm_BHPN


class _Parts(NamedTuple):
    """Views of a tensor (B, T, X) or (B, T, V)."""

    x_BTHP: Tensor
    B_BTGN: Tensor
    C_BTGN: Tensor


def _split(zxbcdt_BTX: Tensor, shape: MixerShape, inner: int) -> tuple[Tensor, Tensor, Tensor]:
    conv_width = inner + 2 * shape.ngroups * shape.d_state
    z, xBC, dt = zxbcdt_BTX.split([inner, conv_width, zxbcdt_BTX.shape[2] - inner - conv_width], dim=-1)
    return z, xBC, dt


def _parts(xBC_BTV: Tensor, shape: MixerShape, inner: int) -> _Parts:
    groups = shape.ngroups * shape.d_state
    x, B, C = xBC_BTV.split([inner, groups, groups], dim=-1)
    per_group = (shape.ngroups, shape.d_state)
    return _Parts(x.unflatten(-1, (-1, shape.headdim)), B.unflatten(-1, per_group), C.unflatten(-1, per_group))


def _last_inputs(xBC_BTV: Tensor, conv_BVW: Tensor) -> Tensor:
    """The state of the convolution after these tokens, however few."""
    kept = conv_BVW.shape[2]
    tail_BVW = xBC_BTV[:, -kept:].transpose(1, 2)
    if tail_BVW.shape[2] < kept:
        tail_BVW = torch.cat([conv_BVW[:, :, tail_BVW.shape[2] :], tail_BVW], dim=2)
    return tail_BVW.to(conv_BVW.dtype, copy=True)


def _convolve(xBC_BTV: Tensor, weight_VW: Tensor, bias_V: Tensor, channels_last_BVW: Tensor) -> Tensor:
    x_BVT = xBC_BTV.transpose(1, 2)
    return causal_conv1d_fwd_function(x_BVT, weight_VW, bias_V, None, channels_last_BVW, None, True).transpose(1, 2)


def _channels_last(conv_BVW: Tensor) -> Tensor:
    return conv_BVW.transpose(1, 2).contiguous().transpose(1, 2)


class _Mixer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        zxbcdt_BTX: Tensor,
        conv_BVW: Tensor,
        ssm_BHPN: Tensor,
        shape: MixerShape,
        conv_V1W: Tensor,
        conv_bias_V: Tensor,
        dt_bias_H: Tensor,
        A_log_H: Tensor,
        D_H: Tensor,
        norm_I: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        inner = norm_I.shape[0]
        z_BTI, xBC_BTV, dt_BTH = _split(zxbcdt_BTX, shape, inner)
        channels_last_BVW = _channels_last(conv_BVW)
        parts = _parts(_convolve(xBC_BTV, conv_V1W[:, 0], conv_bias_V, channels_last_BVW), shape, inner)
        A_H = -torch.exp(A_log_H.float())
        out_BTHP, _, _, _, _, final_BHPN = _mamba_chunk_scan_combined_fwd(
            parts.x_BTHP,
            dt_BTH,
            A_H,
            parts.B_BTGN,
            parts.C_BTGN,
            shape.block,
            D=D_H,
            dt_bias=dt_bias_H,
            initial_states=ssm_BHPN,
            dt_softplus=True,
        )
        y_MI, _, rstd = _layer_norm_fwd(
            out_BTHP.flatten(0, 1).flatten(1),
            norm_I,
            None,
            shape.eps,
            z=z_BTI.flatten(0, 1),
            group_size=inner // shape.ngroups,
            norm_before_gate=False,
            is_rms_norm=True,
        )
        ctx.shape = shape
        ctx.save_for_backward(
            zxbcdt_BTX,
            channels_last_BVW,
            ssm_BHPN,
            conv_V1W,
            conv_bias_V,
            dt_bias_H,
            A_H,
            D_H,
            norm_I,
            out_BTHP,
            rstd,
        )
        ctx.set_materialize_grads(False)
        return y_MI.unflatten(0, zxbcdt_BTX.shape[:2]), _last_inputs(xBC_BTV, conv_BVW), final_BHPN

    @staticmethod
    def backward(ctx: Any, dy_BTI: Tensor | None, dtail_BVW: Tensor | None, dfinal_BHPN: Tensor | None) -> Any:
        zxbcdt, conv, ssm, conv_V1W, conv_bias_V, dt_bias_H, A_H, D_H, norm_I, out, rstd = ctx.saved_tensors
        shape, inner = ctx.shape, norm_I.shape[0]
        if dy_BTI is None:
            dy_BTI = torch.zeros_like(zxbcdt[..., :inner])
        dzxbcdt = torch.empty_like(zxbcdt)
        z, xBC, dt = _split(zxbcdt, shape, inner)
        dz, dxBC, ddt = _split(dzxbcdt, shape, inner)
        dout, dnorm_I, _, _ = _layer_norm_bwd(
            dy_BTI.flatten(0, 1).contiguous(),
            out.flatten(0, 1).flatten(1),
            norm_I,
            None,
            shape.eps,
            None,
            rstd,
            z=z.flatten(0, 1),
            group_size=inner // shape.ngroups,
            norm_before_gate=False,
            is_rms_norm=True,
            dz=dz.flatten(0, 1),
        )
        parts = _parts(_convolve(xBC, conv_V1W[:, 0], conv_bias_V, conv), shape, inner)
        dconvolved = torch.empty(*xBC.shape, dtype=xBC.dtype, device=xBC.device)
        dparts = _parts(dconvolved, shape, inner)
        _, _, dA_H, _, _, dD_H, _, ddt_bias_H, dssm = _mamba_chunk_scan_combined_bwd(
            dout.view_as(out),
            parts.x_BTHP,
            dt,
            A_H,
            parts.B_BTGN,
            parts.C_BTGN,
            out,
            shape.block,
            D=D_H,
            dt_bias=dt_bias_H,
            initial_states=ssm,
            dfinal_states=dfinal_BHPN,
            dt_softplus=True,
            dx=dparts.x_BTHP,
            ddt=ddt,
            dB=dparts.B_BTGN,
            dC=dparts.C_BTGN,
        )
        _, dconv_VW, dconv_bias_V, dconv = causal_conv1d_bwd_function(
            xBC.transpose(1, 2),
            conv_V1W[:, 0],
            conv_bias_V,
            dconvolved.transpose(1, 2),
            None,
            conv,
            None,
            dxBC.transpose(1, 2),
            True,
            True,
        )
        _add_tail(dxBC, dconv, dtail_BVW)
        dA_log_H = dA_H * A_H
        gradients = (dconv_VW[:, None], dconv_bias_V, ddt_bias_H, dA_log_H, dD_H, dnorm_I)
        return dzxbcdt, dconv, dssm, None, *gradients


def _add_tail(dxBC_BTV: Tensor, dconv_BVW: Tensor, dtail_BVW: Tensor | None) -> None:
    """Add, in place, what the state after the last token hands back to the last inputs, or to the state before them."""
    if dtail_BVW is None:
        return
    kept, tokens = dtail_BVW.shape[2], dxBC_BTV.shape[1]
    inside = min(kept, tokens)
    dxBC_BTV[:, tokens - inside :] += dtail_BVW[:, :, kept - inside :].transpose(1, 2).to(dxBC_BTV.dtype)
    if inside < kept:
        dconv_BVW[:, :, inside:] += dtail_BVW[:, :, : kept - inside].to(dconv_BVW.dtype)

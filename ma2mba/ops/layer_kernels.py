"""A Mamba-2 layer on a GPU as one autograd function over mamba-ssm's and causal-conv1d's kernels, with states.

B batch, T tokens, M rows (B T), D model width, X outputs of the first projection (z, x, B, C, dt side by side), I inner
width, V channels of the convolution, W taps less one, H heads, P head width, G groups, N state size.

Forward keeps its input, the projection's output and the scan's: backward makes the norms' outputs and the convolution's
again, each one cheap pass, and writes the gradients of z, x, B, C and dt into one tensor. Where a projection's weight
has a `main_grad` (fp32, its shape), the matrix product adds the weight's gradient to it and autograd gets none.
"""

from typing import Any, NamedTuple

import torch
from causal_conv1d.cpp_functions import causal_conv1d_bwd_function, causal_conv1d_fwd_function
from mamba_ssm.ops.triton.ssd_combined import _mamba_chunk_scan_combined_bwd, _mamba_chunk_scan_combined_fwd
from torch import Tensor

from ma2mba.ops.layer import LayerShape, LayerWeights
from ma2mba.ops.norm_kernels import gated_backward, gated_forward, rms_backward, rms_forward

OFFSETS = 2**31
"""The kernels compute element offsets in 32 signed bits."""


def most_tokens(batch: int, width: int, block: int) -> int:
    """The most tokens that one call may see: the widest tensor (batch, tokens, width) keeps every offset below 2^31."""
    return max(block, (OFFSETS - 1) // (batch * width) // block * block)


def layer_kernels(
    x_BTD: Tensor, conv_BVW: Tensor, ssm_BHPN: Tensor, weights: LayerWeights, shape: LayerShape
) -> tuple[Tensor, Tensor, Tensor]:
    """`mamba2_layer` for tensors on a GPU; a call longer than 32-bit offsets reach is split along the tokens."""
    limit = most_tokens(x_BTD.shape[0], weights.in_proj_XD.shape[0], shape.block)
    if x_BTD.shape[1] <= limit:
        return _Layer.apply(x_BTD, conv_BVW, ssm_BHPN, shape, *weights.tensors())
    outputs = []
    for part_BTD in x_BTD.split(limit, dim=1):
        y_BTD, conv_BVW, ssm_BHPN = _Layer.apply(part_BTD, conv_BVW, ssm_BHPN, shape, *weights.tensors())
        outputs.append(y_BTD)
    return torch.cat(outputs, dim=1), conv_BVW, ssm_BHPN


class _Convolved(NamedTuple):
    x_BTHP: Tensor
    B_BTGN: Tensor
    C_BTGN: Tensor


def _split(zxbcdt_BTX: Tensor, shape: LayerShape, inner: int) -> tuple[Tensor, Tensor, Tensor]:
    """z, xBC and dt: views."""
    conv_width = inner + 2 * shape.ngroups * shape.d_state
    z, xBC, dt = zxbcdt_BTX.split([inner, conv_width, zxbcdt_BTX.shape[2] - inner - conv_width], dim=-1)
    return z, xBC, dt


def _convolved(xBC_BTV: Tensor, shape: LayerShape, inner: int) -> _Convolved:
    groups = shape.ngroups * shape.d_state
    x, B, C = xBC_BTV.split([inner, groups, groups], dim=-1)
    per_group = (shape.ngroups, shape.d_state)
    return _Convolved(x.unflatten(-1, (-1, shape.headdim)), B.unflatten(-1, per_group), C.unflatten(-1, per_group))


def _convolve(xBC_BTV: Tensor, weights: LayerWeights, conv_BVW: Tensor) -> Tensor:
    taps_VW = weights.conv_V1W[:, 0]
    x_BVT = xBC_BTV.transpose(1, 2)
    return causal_conv1d_fwd_function(x_BVT, taps_VW, weights.conv_bias_V, None, conv_BVW, None, True).transpose(1, 2)


def _last_inputs(xBC_BTV: Tensor, conv_BVW: Tensor) -> Tensor:
    """The convolution's state after these tokens, however few."""
    kept = conv_BVW.shape[2]
    tail_BVW = xBC_BTV[:, -kept:].transpose(1, 2)
    if tail_BVW.shape[2] < kept:
        tail_BVW = torch.cat([conv_BVW[:, :, tail_BVW.shape[2] :], tail_BVW], dim=2)
    return tail_BVW.to(conv_BVW.dtype, copy=True)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BTD: Tensor, conv_BVW: Tensor, ssm_BHPN: Tensor, shape: LayerShape, *tensors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = LayerWeights(*tensors)
        batch, inner = x_BTD.shape[0], weights.gated_norm_I.shape[0]
        x_BTD = x_BTD.contiguous()
        conv_BVW = conv_BVW.transpose(1, 2).contiguous().transpose(1, 2)
        u_MD = rms_forward(x_BTD.flatten(0, 1), weights.norm_D, shape.eps)
        zxbcdt_BTX = (u_MD @ weights.in_proj_XD.t()).unflatten(0, (batch, -1))
        z_BTI, xBC_BTV, dt_BTH = _split(zxbcdt_BTX, shape, inner)
        convolved = _convolved(_convolve(xBC_BTV, weights, conv_BVW), shape, inner)
        A_H = -torch.exp(weights.A_log_H.float())
        y_BTHP, _, _, _, _, final_BHPN = _mamba_chunk_scan_combined_fwd(
            convolved.x_BTHP,
            dt_BTH,
            A_H,
            convolved.B_BTGN,
            convolved.C_BTGN,
            shape.block,
            D=weights.D_H,
            dt_bias=weights.dt_bias_H,
            initial_states=ssm_BHPN,
            dt_softplus=True,
        )
        y_MI = y_BTHP.view(-1, inner)
        gated_MI = gated_forward(y_MI, z_BTI.flatten(0, 1), weights.gated_norm_I, shape.eps, shape.ngroups)
        ctx.shape, ctx.weights = shape, weights
        ctx.save_for_backward(x_BTD, conv_BVW, ssm_BHPN, zxbcdt_BTX, y_BTHP, A_H)
        ctx.set_materialize_grads(False)
        after_BTD = x_BTD + (gated_MI @ weights.out_proj_DI.t()).view(x_BTD.shape)
        return after_BTD, _last_inputs(xBC_BTV, conv_BVW), final_BHPN

    @staticmethod
    def backward(ctx: Any, dafter: Tensor | None, dtail: Tensor | None, dfinal: Tensor | None) -> Any:
        x_BTD, conv_BVW, ssm_BHPN, zxbcdt_BTX, y_BTHP, A_H = ctx.saved_tensors
        shape, weights = ctx.shape, ctx.weights
        inner = weights.gated_norm_I.shape[0]
        dafter_MD = torch.zeros_like(x_BTD).flatten(0, 1) if dafter is None else dafter.contiguous().flatten(0, 1)
        z, xBC, dt = _split(zxbcdt_BTX, shape, inner)
        dzxbcdt_BTX = torch.empty_like(zxbcdt_BTX)
        dz, dxBC, ddt = _split(dzxbcdt_BTX, shape, inner)

        do_MD = dafter_MD.to(weights.out_proj_DI.dtype)
        gated_MI, dy_MI, dgated_norm = gated_backward(
            y_BTHP.view(-1, inner),
            z.flatten(0, 1),
            weights.gated_norm_I,
            shape.eps,
            shape.ngroups,
            do_MD @ weights.out_proj_DI,
            dz.flatten(0, 1),
        )
        dout_proj = weight_gradient(weights.out_proj_DI, do_MD, gated_MI)
        del gated_MI, do_MD
        convolved = _convolved(_convolve(xBC, weights, conv_BVW), shape, inner)
        dconvolved_BTV = torch.empty(xBC.shape, dtype=xBC.dtype, device=xBC.device)
        dparts = _convolved(dconvolved_BTV, shape, inner)
        _, _, dA, _, _, dD, _, ddt_bias, dssm = _mamba_chunk_scan_combined_bwd(
            dy_MI.view(y_BTHP.shape),
            convolved.x_BTHP,
            dt,
            A_H,
            convolved.B_BTGN,
            convolved.C_BTGN,
            y_BTHP,
            shape.block,
            D=weights.D_H,
            dt_bias=weights.dt_bias_H,
            initial_states=ssm_BHPN,
            dfinal_states=dfinal,
            dt_softplus=True,
            dx=dparts.x_BTHP,
            ddt=ddt,
            dB=dparts.B_BTGN,
            dC=dparts.C_BTGN,
        )
        del dy_MI, convolved
        _, dtaps, dconv_bias, dconv = causal_conv1d_bwd_function(
            xBC.transpose(1, 2),
            weights.conv_V1W[:, 0],
            weights.conv_bias_V,
            dconvolved_BTV.transpose(1, 2),
            None,
            conv_BVW,
            None,
            dxBC.transpose(1, 2),
            True,
            True,
        )
        _add_tail(dxBC, dconv, dtail)
        del dconvolved_BTV, dparts
        dzxbcdt_MX, x_MD = dzxbcdt_BTX.flatten(0, 1), x_BTD.flatten(0, 1)
        din_proj = weight_gradient(weights.in_proj_XD, dzxbcdt_MX, rms_forward(x_MD, weights.norm_D, shape.eps))
        dx_MD, dnorm = rms_backward(x_MD, weights.norm_D, shape.eps, dzxbcdt_MX @ weights.in_proj_XD, dafter_MD)
        gradients = (dnorm, din_proj, dtaps[:, None], dconv_bias, ddt_bias, dA * A_H, dD, dgated_norm, dout_proj)
        return dx_MD.view(x_BTD.shape), dconv, dssm, None, *gradients


def weight_gradient(weight_OI: Tensor, dy_MO: Tensor, x_MI: Tensor) -> Tensor | None:
    """dy^T x, added in fp32 to `weight.main_grad` if there is one (then None), else returned."""
    if not weight_OI.requires_grad:
        return None
    main_grad = getattr(weight_OI, "main_grad", None)
    if main_grad is None:
        return dy_MO.t() @ x_MI
    if dy_MO.dtype == torch.float32:
        main_grad.addmm_(dy_MO.t(), x_MI)
    else:
        torch.addmm(main_grad, dy_MO.t(), x_MI, out_dtype=torch.float32, out=main_grad)
    return None


def _add_tail(dxBC_BTV: Tensor, dconv_BVW: Tensor, dtail_BVW: Tensor | None) -> None:
    """Add, in place, what the state after the last token hands back to the last inputs, or to the state before them."""
    if dtail_BVW is None:
        return
    kept, tokens = dtail_BVW.shape[2], dxBC_BTV.shape[1]
    inside = min(kept, tokens)
    dxBC_BTV[:, tokens - inside :] += dtail_BVW[:, :, kept - inside :].transpose(1, 2).to(dxBC_BTV.dtype)
    if inside < kept:
        dconv_BVW[:, :, inside:] += dtail_BVW[:, :, : kept - inside].to(dconv_BVW.dtype)

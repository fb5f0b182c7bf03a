"""A Mamba-2 layer on a GPU as one autograd function over the kernels of mamba-ssm and causal-conv1d.

B batch, T tokens, M rows (B T), D model width, X outputs of the first projection (z, x, B, C, dt side by side), I inner
width, V channels of the convolution, W taps less one, H heads, P head width, G head groups, N state size.

Forward saves its input, the output of the first projection, and the output of the scan. Backward recomputes the norms
and the convolution, one cheap pass over memory each, and writes the gradients of z, x, B, C and dt into one tensor.
Gradients of weights go through `main_grad.py`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ma2mba.ops.main_grad import add_or_return, add_or_return_product
from ma2mba.ops.reference.layer import mamba2_layer_reference
from ma2mba.ops.triton.conv import SmallWeights, convolve, convolve_backward, hand_back, inputs_around
from ma2mba.ops.triton.norm import gated_backward, gated_forward, rms_backward, rms_forward
from ma2mba.ops.triton.scan import Scanned, scan_backward, scan_forward
from ma2mba.ops.types import LayerShape, LayerWeights, most_tokens


def layer_kernels(
    x_BTD: Tensor,
    conv_BVW: Tensor,
    ssm_BHPN: Tensor,
    weights: LayerWeights,
    shape: LayerShape,
    product_BTD: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`mamba2_layer` for tensors on a GPU. A call of more than `most_tokens` tokens is split along the tokens.

    With a process group it is not split: raises ValueError if this rank's slice has more tokens.
    """
    if x_BTD.shape[1] == 0:
        return mamba2_layer_reference(x_BTD, conv_BVW, ssm_BHPN, weights, shape, group)
    limit = most_tokens(x_BTD.shape[0], weights.in_proj_XD.shape[0], shape.block)
    if x_BTD.shape[1] <= limit:
        return _Layer.apply(x_BTD, conv_BVW, ssm_BHPN, shape, product_BTD, group, *weights.tensors())
    if group is not None:
        raise ValueError(
            f"a rank's slice of a chunk has {x_BTD.shape[1]} tokens, and the kernels take at most {limit}; "
            "use a smaller chunk_tokens"
        )
    outputs = []
    for piece_BTD in x_BTD.split(limit, dim=1):
        y_BTD, conv_BVW, ssm_BHPN = _Layer.apply(piece_BTD, conv_BVW, ssm_BHPN, shape, None, None, *weights.tensors())
        outputs.append(y_BTD)
    return torch.cat(outputs, dim=1), conv_BVW, ssm_BHPN


@torch.no_grad()
def layer_product(
    x_BTD: Tensor,
    conv_BVW: Tensor,
    ssm_BHPN: Tensor,
    weights: LayerWeights,
    shape: LayerShape,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`mamba2_layer_product` for tensors on a GPU."""
    if not 0 < x_BTD.shape[1] <= most_tokens(x_BTD.shape[0], weights.in_proj_XD.shape[0], shape.block):
        return *layer_kernels(x_BTD, conv_BVW, ssm_BHPN, weights, shape, group=group), None
    x_BTD = x_BTD.contiguous()
    run = _run(x_BTD, conv_BVW, ssm_BHPN, weights, shape, None, group)
    return x_BTD + run.product_BTD, run.tail_BVW, run.final_BHPN, run.product_BTD


class _Convolved(NamedTuple):
    x_BTHP: Tensor
    B_BTGN: Tensor
    C_BTGN: Tensor


def _split(zxbcdt_BTX: Tensor, shape: LayerShape, inner: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return views of z, xBC and dt."""
    conv_width = inner + 2 * shape.ngroups * shape.d_state
    z, xBC, dt = zxbcdt_BTX.split([inner, conv_width, zxbcdt_BTX.shape[2] - inner - conv_width], dim=-1)
    return z, xBC, dt


def _convolved(xBC_BTV: Tensor, shape: LayerShape, inner: int) -> _Convolved:
    keys = shape.ngroups * shape.d_state
    x, B, C = xBC_BTV.split([inner, keys, keys], dim=-1)
    per_group = (shape.ngroups, shape.d_state)
    return _Convolved(x.unflatten(-1, (-1, shape.headdim)), B.unflatten(-1, per_group), C.unflatten(-1, per_group))


def _scanned(
    xBC_BTV: Tensor, dt_BTH: Tensor, ssm_BHPN: Tensor, small: SmallWeights, weights: LayerWeights, shape: LayerShape
) -> Scanned:
    convolved = _convolved(xBC_BTV, shape, weights.gated_norm_I.shape[0])
    return Scanned(
        x_BTHP=convolved.x_BTHP,
        dt_BTH=dt_BTH,
        B_BTGN=convolved.B_BTGN,
        C_BTGN=convolved.C_BTGN,
        A_H=small.A_H,
        D_H=small.D_H,
        dt_bias_H=weights.dt_bias_H,
        initial_BHPN=ssm_BHPN,
        block=shape.block,
    )


class _Run(NamedTuple):
    """The results of a forward.

    conv_BVW, ssm_BHPN     the states before these tokens; channels are contiguous in memory
    zxbcdt_BTX             the first projection
    y_BTHP                 the scan's output
    product_BTD            the last projection
    tail_BVW, final_BHPN   the states after these tokens; with a process group, after all slices
    slots_RW               with a process group, what `exchange_input_gradients` needs
    """

    small: SmallWeights
    conv_BVW: Tensor
    ssm_BHPN: Tensor
    zxbcdt_BTX: Tensor
    y_BTHP: Tensor
    product_BTD: Tensor
    tail_BVW: Tensor
    final_BHPN: Tensor
    slots_RW: Tensor | None


def _run(
    x_BTD: Tensor,
    conv_BVW: Tensor,
    ssm_BHPN: Tensor,
    weights: LayerWeights,
    shape: LayerShape,
    product_BTD: Tensor | None,
    group: ProcessGroup | None,
) -> _Run:
    inner, small = weights.gated_norm_I.shape[0], SmallWeights.of(weights)
    u_MD = rms_forward(x_BTD.flatten(0, 1), weights.norm_D, shape.eps)
    zxbcdt_BTX = (u_MD @ weights.in_proj_XD.t()).unflatten(0, (len(x_BTD), -1))
    z_BTI, xBC_BTV, dt_BTH = _split(zxbcdt_BTX, shape, inner)
    conv_BVW, tail_BVW, slots_RW = inputs_around(xBC_BTV, conv_BVW, group)
    scanned = _scanned(convolve(xBC_BTV, small, conv_BVW), dt_BTH, ssm_BHPN, small, weights, shape)
    y_BTHP, final_BHPN, ssm_BHPN = scan_forward(scanned, group)
    if product_BTD is None:
        gated_MI = gated_forward(
            y_BTHP.view(-1, inner), z_BTI.flatten(0, 1), weights.gated_norm_I, shape.eps, shape.ngroups
        )
        product_BTD = (gated_MI @ weights.out_proj_DI.t()).view(x_BTD.shape)
    return _Run(small, conv_BVW, ssm_BHPN, zxbcdt_BTX, y_BTHP, product_BTD, tail_BVW, final_BHPN, slots_RW)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        conv_BVW: Tensor,
        ssm_BHPN: Tensor,
        shape: LayerShape,
        product_BTD: Tensor | None,
        group: ProcessGroup | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights, x_BTD = LayerWeights(*tensors), x_BTD.contiguous()
        run = _run(x_BTD, conv_BVW, ssm_BHPN, weights, shape, product_BTD, group)
        ctx.shape, ctx.weights, ctx.small, ctx.group = shape, weights, run.small, group
        ctx.save_for_backward(x_BTD, run.conv_BVW, run.ssm_BHPN, run.zxbcdt_BTX, run.y_BTHP, run.slots_RW)
        ctx.set_materialize_grads(False)
        return x_BTD + run.product_BTD, run.tail_BVW, run.final_BHPN

    @staticmethod
    def backward(ctx: Any, dafter: Tensor | None, dtail: Tensor | None, dfinal: Tensor | None) -> Any:
        x_BTD, conv_BVW, ssm_BHPN, zxbcdt_BTX, y_BTHP, slots_RW = ctx.saved_tensors
        shape, weights, small = ctx.shape, ctx.weights, ctx.small
        inner, x_MD = weights.gated_norm_I.shape[0], x_BTD.flatten(0, 1)
        dafter_MD = torch.zeros_like(x_MD) if dafter is None else dafter.contiguous().flatten(0, 1)
        z_BTI, xBC_BTV, dt_BTH = _split(zxbcdt_BTX, shape, inner)
        dzxbcdt_BTX = torch.empty_like(zxbcdt_BTX)
        dz_BTI, dxBC_BTV, ddt_BTH = _split(dzxbcdt_BTX, shape, inner)

        do_MD = dafter_MD.to(weights.out_proj_DI.dtype)
        gated_MI, dy_MI, dgated_norm = gated_backward(
            y_BTHP.view(-1, inner),
            z_BTI.flatten(0, 1),
            weights.gated_norm_I,
            shape.eps,
            shape.ngroups,
            do_MD @ weights.out_proj_DI,
            dz_BTI.flatten(0, 1),
        )
        dout_proj = add_or_return_product(weights.out_proj_DI, do_MD, gated_MI)
        del gated_MI, do_MD
        scanned = _scanned(convolve(xBC_BTV, small, conv_BVW), dt_BTH, ssm_BHPN, small, weights, shape)
        dconvolved_BTV = torch.empty(xBC_BTV.shape, dtype=xBC_BTV.dtype, device=xBC_BTV.device)
        dconvolved = _convolved(dconvolved_BTV, shape, inner)
        d = scan_backward(
            *(scanned, dy_MI.view(y_BTHP.shape), dfinal),
            *(dconvolved.x_BTHP, ddt_BTH, dconvolved.B_BTGN, dconvolved.C_BTGN),
            group=ctx.group,
        )
        del dy_MI, scanned
        dtaps, dconv_bias, dconv = convolve_backward(xBC_BTV, small, conv_BVW, dconvolved_BTV, dxBC_BTV)
        dconv = hand_back(dxBC_BTV, dconv, dtail, slots_RW, ctx.group)
        dzxbcdt_MX = dzxbcdt_BTX.flatten(0, 1)
        din_proj = add_or_return_product(weights.in_proj_XD, dzxbcdt_MX, rms_forward(x_MD, weights.norm_D, shape.eps))
        dx_MD, dnorm = rms_backward(x_MD, weights.norm_D, shape.eps, dzxbcdt_MX @ weights.in_proj_XD, dafter_MD)
        vectors = (dtaps[:, None], dconv_bias, d.dt_bias_H, d.A_H * small.A_H, d.D_H)
        gradients = add_or_return(weights.tensors(), (dnorm, din_proj, *vectors, dgated_norm, dout_proj))
        return dx_MD.view(x_BTD.shape), dconv, d.initial_BHPN, None, None, None, *gradients

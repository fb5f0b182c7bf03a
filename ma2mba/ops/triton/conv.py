"""The convolution of a Mamba-2 layer on a GPU, with causal-conv1d's kernels. Its state holds the last inputs.

B batch, T tokens, V channels of the convolution, W taps less one, H heads.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from causal_conv1d.cpp_functions import causal_conv1d_bwd_function, causal_conv1d_fwd_function
from torch import Tensor
from torch.distributed import ProcessGroup

from ma2mba.errors import UserError
from ma2mba.ops.sequence_parallel import exchange_input_gradients, exchange_inputs, last_inputs
from ma2mba.ops.types import LayerWeights


@triton.jit
def _widen(A_log_ptr, D_ptr, taps_ptr, bias_ptr, A_out, D_out, taps_out, bias_out, H, V, VW, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(A_out + at, -tl.exp(tl.load(A_log_ptr + at, mask=at < H, other=0.0).to(tl.float32)), mask=at < H)
    tl.store(D_out + at, tl.load(D_ptr + at, mask=at < H, other=0.0).to(tl.float32), mask=at < H)
    tl.store(bias_out + at, tl.load(bias_ptr + at, mask=at < V, other=0.0).to(tl.float32), mask=at < V)
    tl.store(taps_out + at, tl.load(taps_ptr + at, mask=at < VW, other=0.0).to(tl.float32), mask=at < VW)


class SmallWeights(NamedTuple):
    """Small parameters in fp32, so that their gradients are in fp32: A = -exp(A_log), D, taps and bias."""

    A_H: Tensor
    D_H: Tensor
    taps_VW: Tensor
    bias_V: Tensor

    @staticmethod
    def of(weights: LayerWeights) -> "SmallWeights":
        given = (weights.A_log_H, weights.D_H, weights.conv_V1W[:, 0], weights.conv_bias_V)
        small = SmallWeights(*(torch.empty(t.shape, dtype=torch.float32, device=t.device) for t in given))
        heads, channels, taps = weights.D_H.numel(), weights.conv_bias_V.numel(), weights.conv_V1W.numel()
        _widen[(triton.cdiv(taps, 1024),)](*given, *small, heads, channels, taps, BLOCK=1024)
        return small


STRIDE = 8
"""causal-conv1d takes rows whose distance in memory is a multiple of 8 elements."""


def _takes(x_BTV: Tensor) -> bool:
    return x_BTV.stride(0) % STRIDE == x_BTV.stride(1) % STRIDE == 0


def _packed(x_BTV: Tensor) -> Tensor:
    """Return a copy without gaps. `contiguous` would keep the distances of a single token's view as they are."""
    return x_BTV.clone(memory_format=torch.contiguous_format)


def convolve(xBC_BTV: Tensor, small: SmallWeights, conv_BVW: Tensor) -> Tensor:
    """Return the convolved inputs. Raise UserError if the number of channels is not a multiple of 8."""
    if xBC_BTV.shape[2] % STRIDE:
        raise UserError(
            f"the convolution of this Mamba-2 layer has {xBC_BTV.shape[2]} channels (expand * d_model + 2 * ngroups * "
            f"d_state), and causal-conv1d takes multiples of {STRIDE}. Change the model, or set MA2MBA_OPS=torch"
        )
    x_BVT = (xBC_BTV if _takes(xBC_BTV) else _packed(xBC_BTV)).transpose(1, 2)
    return causal_conv1d_fwd_function(x_BVT, small.taps_VW, small.bias_V, None, conv_BVW, None, True).transpose(1, 2)


def inputs_around(
    xBC_BTV: Tensor, conv_BVW: Tensor, group: ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the convolution's state before these tokens and after them, and None.

    Channels of the state before are contiguous in memory. With a process group, the state after is the state after all
    slices, and the third result holds the slots that `exchange_input_gradients` needs.
    """
    slots_RW = None
    if group is None:
        after_BVW = _last_inputs(xBC_BTV, conv_BVW)
    else:
        tail_BVW = last_inputs(xBC_BTV, conv_BVW)
        conv_BVW, after_BVW, slots_RW = exchange_inputs(tail_BVW, conv_BVW, xBC_BTV.shape[1], group)
    return conv_BVW.transpose(1, 2).contiguous().transpose(1, 2), after_BVW, slots_RW


def _last_inputs(xBC_BTV: Tensor, conv_BVW: Tensor) -> Tensor:
    """Return the convolution's state after any number of tokens. Channels are contiguous in memory."""
    kept = conv_BVW.shape[2]
    tail_BWV = xBC_BTV[:, -kept:].to(conv_BVW.dtype)
    if tail_BWV.shape[1] < kept:
        tail_BWV = torch.cat([conv_BVW.transpose(1, 2)[:, tail_BWV.shape[1] :], tail_BWV], dim=1)
    return tail_BWV.clone(memory_format=torch.contiguous_format).transpose(1, 2)


def convolve_backward(
    xBC_BTV: Tensor, small: SmallWeights, conv_BVW: Tensor, dconvolved_BTV: Tensor, dxBC_BTV: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of taps and bias (fp32) and of the state. Write the gradient of the inputs to `dxBC_BTV`."""
    if not _takes(xBC_BTV):
        dx_BTV = torch.empty(xBC_BTV.shape, dtype=dxBC_BTV.dtype, device=dxBC_BTV.device)
        gradients = convolve_backward(_packed(xBC_BTV), small, conv_BVW, dconvolved_BTV, dx_BTV)
        dxBC_BTV.copy_(dx_BTV)
        return gradients
    _, dtaps_VW, dbias_V, dconv_BVW = causal_conv1d_bwd_function(
        xBC_BTV.transpose(1, 2),
        small.taps_VW,
        small.bias_V,
        dconvolved_BTV.transpose(1, 2),
        None,
        conv_BVW,
        None,
        dxBC_BTV.transpose(1, 2),
        True,
        True,
    )
    return dtaps_VW, dbias_V, dconv_BVW


def hand_back(
    dxBC_BTV: Tensor, dconv_BVW: Tensor, dtail_BVW: Tensor | None, slots_RW: Tensor | None, group: ProcessGroup | None
) -> Tensor:
    """Add the gradient of the state after these tokens to `dxBC_BTV`, in place, for the inputs that the state holds.

    Return the gradient of the state before these tokens; with a process group, of the state before all slices.
    """
    if group is None:
        _add_tail(dxBC_BTV, dconv_BVW, dtail_BVW)
        return dconv_BVW
    assert slots_RW is not None
    dtail_BVW, dinitial_BVW = exchange_input_gradients(dconv_BVW, dtail_BVW, slots_RW, group)
    _add_tail(dxBC_BTV, dconv_BVW, dtail_BVW)
    return dinitial_BVW


def _add_tail(dxBC_BTV: Tensor, dconv_BVW: Tensor, dtail_BVW: Tensor | None) -> None:
    """Add the gradient of the last state, in place, to the last inputs, and to the first state if these are too few."""
    if dtail_BVW is None:
        return
    kept, tokens = dtail_BVW.shape[2], dxBC_BTV.shape[1]
    inside = min(kept, tokens)
    dxBC_BTV[:, tokens - inside :] += dtail_BVW[:, :, kept - inside :].transpose(1, 2).to(dxBC_BTV.dtype)
    if inside < kept:
        dconv_BVW[:, :, inside:] += dtail_BVW[:, :, : kept - inside].to(dconv_BVW.dtype)

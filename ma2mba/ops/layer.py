"""A Mamba-2 layer with its residual: norm, projection, convolution, SSD scan, gated norm, projection. The one door.

B batch, T tokens, D model width, X outputs of the first projection (z, x, B, C, dt side by side: 2 I + 2 G N + H),
I inner width, V channels of the convolution (I + 2 G N), W taps less one, H heads, P head width, G groups,
N state size.
"""

from torch import Tensor
from torch.distributed import ProcessGroup

from ma2mba.ops.backend import backend
from ma2mba.ops.reference.layer import mamba2_layer_reference
from ma2mba.ops.types import LayerShape, LayerWeights


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
    (`ma2mba.ops.sequence_parallel`).
    """
    which = backend(x_BTD.device)
    if which == "triton":
        from ma2mba.ops.triton.layer import layer_kernels

        return layer_kernels(x_BTD, conv_BVW, ssm_BHPN, weights, shape, product_BTD, group)
    if which == "shadow":
        from ma2mba.ops.meta import layer_shadow

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
        from ma2mba.ops.triton.layer import layer_product

        return layer_product(x_BTD, conv_BVW, ssm_BHPN, weights, shape, group)
    if which == "shadow":
        from ma2mba.ops.meta import layer_shadow

        return *layer_shadow(x_BTD, conv_BVW, ssm_BHPN, weights, shape), x_BTD.to(weights.norm_D.dtype)
    return *mamba2_layer_reference(x_BTD, conv_BVW, ssm_BHPN, weights, shape, group), None

"""A Mamba-2 layer with its residual: norm, projection, convolution, SSD scan, gated norm, projection.

B batch, T tokens, D model width, V channels of the convolution, W taps less one, H heads, P head width, N state size.
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
    """Return x after the layer, and both states after its last token.

    `conv_BVW` holds the last inputs of the convolution, `ssm_BHPN` the state of the scan. x_BTD is fp32 or fp64, the
    weights are fp32 or bf16 (or fp64), ssm_BHPN is fp32 or fp64. Runs the kernels of mamba-ssm and causal-conv1d on a
    GPU that has them, and plain torch elsewhere (`ma2mba.ops.backend`).

    With `product_BTD`, the result of `mamba2_layer_product` for the same inputs, the last projection does not run
    again. With a process group, x is this rank's slice of the tokens, and the states are the states before and after
    all slices (`ma2mba.ops.sequence_parallel`).
    """
    which = backend(x_BTD.device)
    if which == "triton":
        from ma2mba.ops.triton.layer import layer_kernels

        return layer_kernels(x_BTD, conv_BVW, ssm_BHPN, weights, shape, product_BTD, group)
    if which == "meta":
        from ma2mba.ops.meta import layer_on_meta

        return layer_on_meta(x_BTD, conv_BVW, ssm_BHPN, weights, shape, product_BTD)
    return mamba2_layer_reference(x_BTD, conv_BVW, ssm_BHPN, weights, shape, group)


def mamba2_layer_product(
    x_BTD: Tensor,
    conv_BVW: Tensor,
    ssm_BHPN: Tensor,
    weights: LayerWeights,
    shape: LayerShape,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Run `mamba2_layer` without gradients. Return its results, and the result of its last projection.

    The projection's result has the weights' dtype. It is None where it would spare nothing: in plain torch, and in
    calls that the kernels must split.
    """
    which = backend(x_BTD.device)
    if which == "triton":
        from ma2mba.ops.triton.layer import layer_product

        return layer_product(x_BTD, conv_BVW, ssm_BHPN, weights, shape, group)
    if which == "meta":
        from ma2mba.ops.meta import layer_on_meta

        return *layer_on_meta(x_BTD, conv_BVW, ssm_BHPN, weights, shape), x_BTD.to(weights.norm_D.dtype)
    return *mamba2_layer_reference(x_BTD, conv_BVW, ssm_BHPN, weights, shape, group), None

"""A Mamba-2 layer with its state as argument and result, the root mean square norm, and the loss of the head."""

from ma2mba.ops.backend import backend, kernels_on_meta
from ma2mba.ops.layer import mamba2_layer, mamba2_layer_product
from ma2mba.ops.loss import cross_entropy_sum
from ma2mba.ops.reference.norm import rms_norm
from ma2mba.ops.step import open_step, product_of_norm
from ma2mba.ops.types import LayerShape, LayerWeights, most_tokens

__all__ = [
    "LayerShape",
    "LayerWeights",
    "backend",
    "cross_entropy_sum",
    "kernels_on_meta",
    "mamba2_layer",
    "mamba2_layer_product",
    "most_tokens",
    "open_step",
    "product_of_norm",
    "rms_norm",
]

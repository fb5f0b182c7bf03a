"""The recurrent layer of Mamba-2 with state in and out, the norm, and the loss of the head."""

from ma2mba.ops.backend import backend
from ma2mba.ops.layer import LayerShape, LayerWeights, mamba2_layer, mamba2_layer_product
from ma2mba.ops.loss import cross_entropy_sum
from ma2mba.ops.norm import rms_norm

__all__ = [
    "LayerShape",
    "LayerWeights",
    "backend",
    "cross_entropy_sum",
    "mamba2_layer",
    "mamba2_layer_product",
    "rms_norm",
]

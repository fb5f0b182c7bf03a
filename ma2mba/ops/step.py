"""A Mamba-2 layer for one token of several sequences, and the head's logits.

B sequences, D model width, X outputs (the vocabulary).
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ma2mba.ops.backend import backend
from ma2mba.ops.reference.norm import rms_norm
from ma2mba.ops.reference.step import ReferenceStep
from ma2mba.ops.types import LayerShape, LayerWeights


class Step(Protocol):
    """A layer's recurrent states of some sequences. A call advances the first B of them by one token.

    in_place   True if a call changes the same memory each time, so that a CUDA graph may record it
    """

    in_place: bool

    def __call__(self, x_BD: Tensor) -> Tensor:
        """Return x_BD, fp32 or wider, after the layer. Kernels write the result to x_BD itself."""

    def load(self, row: int, state: tuple[Tensor, ...]) -> None:
        """Copy the states of one sequence into row `row`: conv_1VW and ssm_1HPN, as `mamba2_layer` takes them."""

    def state(self, row: int) -> tuple[Tensor, Tensor]:
        """Return copies of conv_1VW and ssm_1HPN of row `row`."""


def open_step(weights: LayerWeights, shape: LayerShape, rows: int) -> Step:
    """Return the step of a layer for `rows` sequences, with states of zeros.

    Runs this project's kernels on a GPU that has mamba-ssm and causal-conv1d (`ma2mba.ops.backend`), and plain torch
    elsewhere, for several head groups, and in fp64. The step reads the large weights where they are, and keeps copies
    of the small ones.
    """
    in_fp64 = weights.in_proj_XD.dtype == torch.float64
    if backend(weights.norm_D.device) == "triton" and shape.ngroups == 1 and not in_fp64:
        from ma2mba.ops.triton.step import KernelStep

        return KernelStep(weights, shape, rows)
    return ReferenceStep(weights, shape, rows)


def product_of_norm(x_BD: Tensor, norm_D: Tensor, weight_XD: Tensor, eps: float) -> Tensor:
    """Return rms_norm(x_BD) @ weight_XD.T as out_BX, in fp32 or wider. One row on a GPU takes one pass of a kernel."""
    if len(x_BD) == 1 and backend(x_BD.device) == "triton" and weight_XD.dtype != torch.float64:
        from ma2mba.ops.triton.step import HEAD, norm_product

        out_BX = weight_XD.new_empty(1, len(weight_XD), dtype=torch.float32)
        norm_product(x_BD, norm_D, weight_XD, out_BX, eps, HEAD)
        return out_BX
    out_BX = F.linear(rms_norm(x_BD, norm_D, eps).to(weight_XD.dtype), weight_XD)
    return out_BX.to(torch.promote_types(out_BX.dtype, torch.float32))

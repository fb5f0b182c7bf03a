"""The cross-entropy of a linear head: the door, and plain torch.

M positions, D model width, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ma2mba.ops.backend import backend


def cross_entropy_sum(x_MD: Tensor, weight_VD: Tensor, targets_M: Tensor) -> Tensor:
    """Sum over positions of the cross-entropy of `x weight^T` against the targets, fp32 or wider. M may be 0."""
    if backend(x_MD.device) == "triton" and len(x_MD):
        from ma2mba.ops.triton.loss import CrossEntropy

        return CrossEntropy.apply(x_MD, weight_VD, targets_M, torch.is_grad_enabled())
    if backend(x_MD.device) == "shadow":
        from ma2mba.ops.meta import CrossEntropyShadow

        return CrossEntropyShadow.apply(x_MD, weight_VD, targets_M, torch.is_grad_enabled())
    logits_MV = F.linear(x_MD, weight_VD)
    logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))
    return F.cross_entropy(logits_MV, targets_M, reduction="sum")

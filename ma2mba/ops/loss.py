"""The cross-entropy of a linear head.

M positions, D model width, V vocabulary.
"""

import torch
from torch import Tensor

from ma2mba.ops.backend import backend
from ma2mba.ops.reference.loss import cross_entropy_sum_reference


def cross_entropy_sum(x_MD: Tensor, weight_VD: Tensor, targets_M: Tensor) -> Tensor:
    """Return the sum over positions of the cross-entropy of `x weight^T` and the targets.

    The sum is in fp32 or wider. M may be 0.
    """
    which = backend(x_MD.device)
    if which == "triton" and len(x_MD):
        from ma2mba.ops.triton.loss import CrossEntropy

        return CrossEntropy.apply(x_MD, weight_VD, targets_M, torch.is_grad_enabled())
    if which == "meta":
        from ma2mba.ops.meta import CrossEntropyOnMeta

        return CrossEntropyOnMeta.apply(x_MD, weight_VD, targets_M, torch.is_grad_enabled())
    return cross_entropy_sum_reference(x_MD, weight_VD, targets_M)

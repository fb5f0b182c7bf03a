"""The cross-entropy of a linear head in plain torch.

M positions, D model width, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy_sum_reference(x_MD: Tensor, weight_VD: Tensor, targets_M: Tensor) -> Tensor:
    """`ma2mba.ops.cross_entropy_sum` in plain torch."""
    logits_MV = F.linear(x_MD, weight_VD)
    logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))
    return F.cross_entropy(logits_MV, targets_M, reduction="sum")

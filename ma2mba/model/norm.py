"""Root mean square norm."""

import torch
from torch import Tensor, nn

from ma2mba.ops import rms_norm


class RMSNorm(nn.Module):
    """Computes in fp32 or wider and returns the dtype of the weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

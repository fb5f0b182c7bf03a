"""Root mean square norm over the last axis, in plain torch."""

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, eps: float, gate: Tensor | None = None, groups: int = 1) -> Tensor:
    """x (..., width) over its root mean square, times `weight` (width,), in fp32 or wider; in the weight's dtype.

    With a gate, x * SiLU(gate) is normalised (mamba-ssm's `norm_before_gate=False`), each of `groups` parts on its own.
    """
    high = torch.promote_types(x.dtype, torch.float32)
    x = x.to(high)
    if gate is not None:
        x = x * F.silu(gate.to(high))
    parts = x.unflatten(-1, (groups, -1))
    parts = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + eps)
    return (parts.flatten(-2) * weight.to(high)).to(weight.dtype)

"""The root mean square norm in plain torch. GPU kernels of the norm exist only inside a layer (`triton/norm.py`)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ma2mba.ops.main_grad import widen


def rms_norm(x: Tensor, weight: Tensor, eps: float, gate: Tensor | None = None, groups: int = 1) -> Tensor:
    """Return x (..., width) over its root mean square along the last axis, times `weight` (width,).

    Computes in fp32 or wider; the result has the weight's dtype. With a gate, it normalises x * SiLU(gate), as
    mamba-ssm does with `norm_before_gate=False`. The width is split into `groups`, and each one is normalised alone.
    """
    high = torch.promote_types(x.dtype, torch.float32)
    x = x.to(high)
    if gate is not None:
        x = x * F.silu(gate.to(high))
    grouped = x.unflatten(-1, (groups, -1))
    grouped = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + eps)
    return (grouped.flatten(-2) * widen(weight, high)).to(weight.dtype)

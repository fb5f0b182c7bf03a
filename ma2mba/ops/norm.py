"""Root mean square norm over the last axis: the door, and the plain torch reference."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ma2mba.ops.backend import backend


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., width) over its root mean square, times `weight` (width,), in fp32 or wider; in the weight's dtype."""
    if backend(x.device) == "triton":
        from ma2mba.ops.norm_kernels import RMSNormKernel

        return RMSNormKernel.apply(x, weight, eps)
    return rms_norm_reference(x, weight, eps)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, gate: Tensor | None = None, groups: int = 1) -> Tensor:
    """`rms_norm` in plain torch.

    With a gate, x * SiLU(gate) is normalised (mamba-ssm's `norm_before_gate=False`), each of `groups` parts on its own.
    """
    high = torch.promote_types(x.dtype, torch.float32)
    x = x.to(high)
    if gate is not None:
        x = x * F.silu(gate.to(high))
    parts = x.unflatten(-1, (groups, -1))
    parts = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + eps)
    return (parts.flatten(-2) * weight.to(high)).to(weight.dtype)

"""Root mean square norm over the last axis, in plain torch."""

from typing import Any

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
    return (parts.flatten(-2) * _widened(weight, high)).to(weight.dtype)


def _widened(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return _Widened.apply(weight, dtype) if hasattr(weight, "main_grad") else weight.to(dtype)


class _Widened(torch.autograd.Function):
    """A weight in a wider dtype. Its gradient is added to `weight.main_grad` as it is: autograd would round every
    chunk's to the weight's dtype."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.weight = weight
        return weight.to(dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ctx.weight.main_grad.add_(gradient)
        return None, None

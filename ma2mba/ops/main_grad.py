"""Gradients of weights that are added in fp32, or in fp64 for fp64 weights.

During a backward of `ma2mba.magc`, a weight on a GPU carries the sum of its gradients over all chunks as the attribute
`main_grad`, of the weight's shape (a convention of Megatron). An operation may add its gradient to that sum and return
None to autograd: this spares a pass over the gradient, and no chunk's gradient is rounded to the weight's dtype. The
attribute's name is the whole contract between `ma2mba/magc/gradients.py`, which sets it, and this file, which
alone adds to it: neither imports the other.

O and I rows and columns of a weight, M rows of its input.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def main_grad(weight: Tensor) -> Tensor | None:
    """Return the sum that a weight carries, None if it carries none."""
    return getattr(weight, "main_grad", None)


def add_or_return(weights: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Add gradients to the sums of their weights, all in one kernel. Return None for each of them, for autograd.

    The gradient of a weight without a sum is returned.
    """
    sums = [main_grad(weight) for weight in weights]
    pairs = [(s, g) for s, g in zip(sums, gradients, strict=True) if s is not None and g is not None]
    if pairs:
        torch._foreach_add_([s for s, _ in pairs], [g for _, g in pairs])
    return [gradient if s is None else None for s, gradient in zip(sums, gradients, strict=True)]


def add_or_return_product(weight_OI: Tensor, dy_MO: Tensor, x_MI: Tensor) -> Tensor | None:
    """As `add_or_return`, for the gradient dy^T x of a matrix, which is added inside the matrix product."""
    if not weight_OI.requires_grad:
        return None
    total_OI = main_grad(weight_OI)
    if total_OI is None:
        return dy_MO.t() @ x_MI
    add_product(total_OI, dy_MO, x_MI)
    return None


def add_or_return_scaled(weight: Tensor, gradient: Tensor, scale: Tensor) -> Tensor | None:
    """As `add_or_return`, for a gradient times a scalar."""
    if not weight.requires_grad:
        return None
    total = main_grad(weight)
    if total is None:
        return (gradient * scale).to(weight.dtype)
    total.addcmul_(gradient, scale)
    return None


def add_product(total_OI: Tensor, dy_MO: Tensor, x_MI: Tensor) -> None:
    """Add dy^T x to a sum in fp32, inside the matrix product."""
    if dy_MO.dtype == torch.float32:
        total_OI.addmm_(dy_MO.t(), x_MI)
    else:
        torch.addmm(total_OI, dy_MO.t(), x_MI, out_dtype=torch.float32, out=total_OI)


def widen(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight in a wider dtype. Its gradient is added to its sum, if it has one, without rounding."""
    return weight.to(dtype) if main_grad(weight) is None else _Widen.apply(weight, dtype)


class _Widen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.weight = weight
        return weight.to(dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return *add_or_return([ctx.weight], [gradient]), None

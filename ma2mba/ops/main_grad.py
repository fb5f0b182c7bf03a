"""Gradients of weights that are added in fp32 to a sum which the weight carries as `main_grad`."""

from collections.abc import Sequence

import torch
from torch import Tensor


def hand_over(weights: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients for autograd: None where a weight has a `main_grad`, to which they are added in one kernel."""
    sums = [getattr(weight, "main_grad", None) for weight in weights]
    pairs = [(s, g) for s, g in zip(sums, gradients, strict=True) if s is not None and g is not None]
    if pairs:
        torch._foreach_add_([s for s, _ in pairs], [g for _, g in pairs])
    return [gradient if s is None else None for s, gradient in zip(sums, gradients, strict=True)]


def weight_gradient(weight_OI: Tensor, dy_MO: Tensor, x_MI: Tensor) -> Tensor | None:
    """dy^T x, added in fp32 to `weight.main_grad` if there is one (then None), else returned."""
    if not weight_OI.requires_grad:
        return None
    main_grad = getattr(weight_OI, "main_grad", None)
    if main_grad is None:
        return dy_MO.t() @ x_MI
    add_product(main_grad, dy_MO, x_MI)
    return None


def add_product(total_OI: Tensor, dy_MO: Tensor, x_MI: Tensor) -> None:
    """Add dy^T x to a sum in fp32, inside the matrix product."""
    if dy_MO.dtype == torch.float32:
        total_OI.addmm_(dy_MO.t(), x_MI)
    else:
        torch.addmm(total_OI, dy_MO.t(), x_MI, out_dtype=torch.float32, out=total_OI)

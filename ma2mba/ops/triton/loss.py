"""The cross-entropy of a linear head on a GPU, for a block of positions at a time.

The gradient of the logits overwrites the logits.

M positions, D model width, V vocabulary.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ma2mba.ops.main_grad import add_or_return_product, add_or_return_scaled, add_product
from ma2mba.ops.types import LOSS_BLOCK

COLUMNS = 8192


@triton.jit
def _loss(logits_ptr, targets_ptr, loss_ptr, V, BLOCK: tl.constexpr, GRADIENT: tl.constexpr):
    """Compute a row's cross-entropy. With GRADIENT, overwrite its logits with softmax minus the target's indicator."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    logits_ptr += row * V
    greatest, total = float("-inf"), 0.0
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + columns, mask=columns < V, other=float("-inf")).to(tl.float32)
        greater = tl.maximum(greatest, tl.max(logits, axis=0))
        total = total * tl.exp(greatest - greater) + tl.sum(tl.exp(logits - greater), axis=0)
        greatest = greater
    target_logit = tl.load(logits_ptr + target).to(tl.float32)
    tl.store(loss_ptr + row, greatest + tl.log(total) - target_logit)
    if GRADIENT:
        tl.debug_barrier()  # every thread has read the target's logit before it is overwritten
        for start in range(0, V, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            logits = tl.load(logits_ptr + columns, mask=columns < V, other=float("-inf")).to(tl.float32)
            gradient = tl.exp(logits - greatest) / total - tl.where(columns == target, 1.0, 0.0)
            tl.store(logits_ptr + columns, gradient.to(logits_ptr.dtype.element_ty), mask=columns < V)


class CrossEntropy(torch.autograd.Function):
    """`ma2mba.ops.cross_entropy_sum` for tensors on a GPU.

    Up to LOSS_BLOCK positions save the gradient of their logits for backward. For more positions, forward computes the
    gradients of x and of the weight (fp32) block by block, and backward only scales them. `differentiable` says whether
    a backward may follow: `needs_input_grad` is also True under no_grad.
    """

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, differentiable: bool) -> Tensor:
        ctx.weight_VD, ctx.whole = weight_VD, len(x_MD) <= LOSS_BLOCK
        if not (differentiable and any(ctx.needs_input_grad)):
            blocks = zip(x_MD.split(LOSS_BLOCK), targets_M.split(LOSS_BLOCK), strict=True)
            return torch.stack([_losses(x @ weight_VD.t(), targets, False).sum() for x, targets in blocks]).sum()
        if ctx.whole:
            dlogits_MV = x_MD @ weight_VD.t()
            loss_M = _losses(dlogits_MV, targets_M, True)
            ctx.save_for_backward(x_MD, dlogits_MV)
            return loss_M.sum()
        total, dx_MD, dweight_VD = _by_blocks(x_MD, weight_VD, targets_M)
        ctx.save_for_backward(dx_MD, dweight_VD)
        return total

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        if not ctx.whole:
            dx_MD, dweight_VD = ctx.saved_tensors
            return (dx_MD * dloss).to(dx_MD.dtype), add_or_return_scaled(ctx.weight_VD, dweight_VD, dloss), None, None
        x_MD, dlogits_MV = ctx.saved_tensors
        dx_MD = ((dlogits_MV @ ctx.weight_VD) * dloss).to(x_MD.dtype)
        return dx_MD, add_or_return_product(ctx.weight_VD, dlogits_MV, (x_MD * dloss).to(x_MD.dtype)), None, None


def _losses(logits_MV: Tensor, targets_M: Tensor, gradient: bool) -> Tensor:
    """Return each row's cross-entropy in fp32. With `gradient`, overwrite the logits with their gradient."""
    loss_M = torch.empty(len(logits_MV), dtype=torch.float32, device=logits_MV.device)
    _loss[(len(logits_MV),)](
        logits_MV, targets_M, loss_M, logits_MV.shape[1], BLOCK=COLUMNS, GRADIENT=gradient, num_warps=8
    )
    return loss_M


def _by_blocks(x_MD: Tensor, weight_VD: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of the losses, and the gradients of x and (in fp32) of the weight."""
    dx_MD, losses = torch.empty_like(x_MD), []
    dweight_VD = torch.zeros(weight_VD.shape, dtype=torch.float32, device=x_MD.device)
    blocks = (t.split(LOSS_BLOCK) for t in (x_MD, targets_M, dx_MD))
    for x, targets, dx in zip(*blocks, strict=True):
        dlogits = x @ weight_VD.t()
        losses.append(_losses(dlogits, targets, True).sum())
        torch.mm(dlogits, weight_VD, out=dx)
        if weight_VD.requires_grad:
            add_product(dweight_VD, dlogits, x)
    return torch.stack(losses).sum(), dx_MD, dweight_VD

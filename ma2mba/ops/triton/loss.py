"""The cross-entropy of a linear head on a GPU: logits become their own gradient, in place, a part of a chunk at a time.

M positions, D model width, V vocabulary.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ma2mba.ops.main_grad import add_product, weight_gradient
from ma2mba.ops.types import PART

COLUMNS = 8192


@triton.jit
def _loss(logits_ptr, targets_ptr, loss_ptr, V, BLOCK: tl.constexpr, GRADIENT: tl.constexpr):
    """A row's cross-entropy; with GRADIENT its logits become softmax less the target's indicator."""
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
    chosen = tl.load(logits_ptr + target).to(tl.float32)
    tl.store(loss_ptr + row, greatest + tl.log(total) - chosen)
    if GRADIENT:
        tl.debug_barrier()  # every thread has read the target's logit before it is overwritten
        for start in range(0, V, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            logits = tl.load(logits_ptr + columns, mask=columns < V, other=float("-inf")).to(tl.float32)
            gradient = tl.exp(logits - greatest) / total - tl.where(columns == target, 1.0, 0.0)
            tl.store(logits_ptr + columns, gradient.to(logits_ptr.dtype.element_ty), mask=columns < V)


class CrossEntropy(torch.autograd.Function):
    """`ma2mba.ops.cross_entropy_sum`; the weight's gradient goes into `weight.main_grad` if there is one.

    Up to PART positions keep their logits' gradient for backward. More are worked off part by part, each at once to the
    gradients of x and of the weight (fp32), which backward only scales. `differentiable`: whether a backward may
    follow, which `needs_input_grad` does not say.
    """

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, differentiable: bool) -> Tensor:
        ctx.weight_VD, ctx.whole = weight_VD, len(x_MD) <= PART
        if not (differentiable and any(ctx.needs_input_grad)):
            parts = zip(x_MD.split(PART), targets_M.split(PART), strict=True)
            return torch.stack([_losses(x @ weight_VD.t(), targets, False).sum() for x, targets in parts]).sum()
        if ctx.whole:
            dlogits_MV = x_MD @ weight_VD.t()
            loss_M = _losses(dlogits_MV, targets_M, True)
            ctx.save_for_backward(x_MD, dlogits_MV)
            return loss_M.sum()
        total, dx_MD, dweight_VD = _by_parts(x_MD, weight_VD, targets_M)
        ctx.save_for_backward(dx_MD, dweight_VD)
        return total

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        if not ctx.whole:
            dx_MD, dweight_VD = ctx.saved_tensors
            return (dx_MD * dloss).to(dx_MD.dtype), _scaled_gradient(ctx.weight_VD, dweight_VD, dloss), None, None
        x_MD, dlogits_MV = ctx.saved_tensors
        dx_MD = ((dlogits_MV @ ctx.weight_VD) * dloss).to(x_MD.dtype)
        return dx_MD, weight_gradient(ctx.weight_VD, dlogits_MV, (x_MD * dloss).to(x_MD.dtype)), None, None


def _losses(logits_MV: Tensor, targets_M: Tensor, gradient: bool) -> Tensor:
    """Each row's cross-entropy, fp32; with `gradient` the logits become their gradient."""
    loss_M = torch.empty(len(logits_MV), dtype=torch.float32, device=logits_MV.device)
    _loss[(len(logits_MV),)](
        logits_MV, targets_M, loss_M, logits_MV.shape[1], BLOCK=COLUMNS, GRADIENT=gradient, num_warps=8
    )
    return loss_M


def _by_parts(x_MD: Tensor, weight_VD: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the losses, and the gradients of x and (in fp32) of the weight."""
    dx_MD, losses = torch.empty_like(x_MD), []
    dweight_VD = torch.zeros(weight_VD.shape, dtype=torch.float32, device=x_MD.device)
    for x, targets, dx in zip(x_MD.split(PART), targets_M.split(PART), dx_MD.split(PART), strict=True):
        dlogits = x @ weight_VD.t()
        losses.append(_losses(dlogits, targets, True).sum())
        torch.mm(dlogits, weight_VD, out=dx)
        if weight_VD.requires_grad:
            add_product(dweight_VD, dlogits, x)
    return torch.stack(losses).sum(), dx_MD, dweight_VD


def _scaled_gradient(weight_VD: Tensor, dweight_VD: Tensor, scale: Tensor) -> Tensor | None:
    if not weight_VD.requires_grad:
        return None
    main_grad = getattr(weight_VD, "main_grad", None)
    if main_grad is None:
        return (dweight_VD * scale).to(weight_VD.dtype)
    main_grad.addcmul_(dweight_VD, scale)
    return None

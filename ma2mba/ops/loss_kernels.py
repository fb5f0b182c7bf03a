"""The cross-entropy of a linear head on a GPU: logits become their own gradient, in place, in one more pass.

M positions, D model width, V vocabulary.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ma2mba.ops.layer_kernels import weight_gradient

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
    """`ma2mba.ops.cross_entropy_sum`; the weight's gradient goes into `weight.main_grad` if there is one."""

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, weight_VD: Tensor, targets_M: Tensor) -> Tensor:
        logits_MV = x_MD @ weight_VD.t()
        loss_M = torch.empty(len(x_MD), dtype=torch.float32, device=x_MD.device)
        wanted = any(ctx.needs_input_grad)
        _loss[(len(x_MD),)](
            logits_MV, targets_M, loss_M, logits_MV.shape[1], BLOCK=COLUMNS, GRADIENT=wanted, num_warps=8
        )
        if wanted:
            ctx.weight_VD = weight_VD
            ctx.save_for_backward(x_MD, logits_MV)
        return loss_M.sum()

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        x_MD, dlogits_MV = ctx.saved_tensors
        dx_MD = ((dlogits_MV @ ctx.weight_VD) * dloss).to(x_MD.dtype)
        return dx_MD, weight_gradient(ctx.weight_VD, dlogits_MV, (x_MD * dloss).to(x_MD.dtype)), None

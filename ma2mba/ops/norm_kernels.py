"""Root mean square norm on a GPU in one pass each way: fp32 residual stream in, the weights' dtype out.

M rows, N width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _forward(x_ptr, weight_ptr, y_ptr, rstd_ptr, N, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < N
    x = tl.load(x_ptr + row * N + columns, mask=inside, other=0.0).to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, axis=0) / N + eps)
    tl.store(rstd_ptr + row, rstd)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * N + columns, (x * rstd * weight).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(x_ptr, weight_ptr, rstd_ptr, dy_ptr, dx_ptr, dweight_ptr, M, N, rows, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < N
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK,), dtype=tl.float32)
    for i in range(0, rows):
        row = (program * rows + i).to(tl.int64)
        here = inside & (row < M)
        x = tl.load(x_ptr + row * N + columns, mask=here, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * N + columns, mask=here, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, mask=row < M, other=0.0)
        normed = x * rstd
        dweight += dy * normed
        scaled = dy * weight
        dx = (scaled - normed * (tl.sum(scaled * normed, axis=0) / N)) * rstd
        tl.store(dx_ptr + row * N + columns, dx.to(dx_ptr.dtype.element_ty), mask=here)
    tl.store(dweight_ptr + program.to(tl.int64) * N + columns, dweight, mask=inside)


class RMSNormKernel(torch.autograd.Function):
    """`ma2mba.ops.rms_norm` without a gate; x (..., N) contiguous."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_N: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        y = torch.empty(x.shape, dtype=weight_N.dtype, device=x.device)
        rstd_M = torch.empty(rows, dtype=torch.float32, device=x.device)
        block = triton.next_power_of_2(width)
        _forward[(rows,)](x, weight_N, y, rstd_M, width, eps, BLOCK=block, num_warps=min(max(block // 256, 1), 8))
        ctx.save_for_backward(x, weight_N, rstd_M)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight_N, rstd_M = ctx.saved_tensors
        width, rows = x.shape[-1], rstd_M.shape[0]
        programs = min(rows, 2 * torch.cuda.get_device_properties(x.device).multi_processor_count)
        dx = torch.empty_like(x)
        partial = torch.empty(programs, width, dtype=torch.float32, device=x.device)
        block, share = triton.next_power_of_2(width), -(-rows // programs)
        grid, warps = (programs,), min(max(block // 256, 1), 8)
        _backward[grid](
            x, weight_N, rstd_M, dy.contiguous(), dx, partial, rows, width, share, BLOCK=block, num_warps=warps
        )
        return dx, partial.sum(0).to(weight_N.dtype), None

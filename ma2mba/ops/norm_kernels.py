"""Root mean square norms on a GPU, each way one pass over memory.

M rows, N width. Rows may lie apart (a stride is passed) but a row's elements are neighbours.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rms_forward(x_ptr, weight_ptr, y_ptr, N, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < N
    x = tl.load(x_ptr + row * N + columns, mask=inside, other=0.0).to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, axis=0) / N + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * N + columns, (x * rstd * weight).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rms_backward(x_ptr, weight_ptr, dy_ptr, residual_ptr, dx_ptr, dweight_ptr, M, N, rows, eps, BLOCK: tl.constexpr):
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
        residual = tl.load(residual_ptr + row * N + columns, mask=here, other=0.0).to(tl.float32)
        rstd = tl.rsqrt(tl.sum(x * x, axis=0) / N + eps)
        normed = x * rstd
        dweight += dy * normed
        scaled = dy * weight
        dx = residual + (scaled - normed * (tl.sum(scaled * normed, axis=0) / N)) * rstd
        tl.store(dx_ptr + row * N + columns, dx.to(dx_ptr.dtype.element_ty), mask=here)
    tl.store(dweight_ptr + program.to(tl.int64) * N + columns, dweight, mask=inside)


@triton.jit
def _gated_forward(x_ptr, gate_ptr, weight_ptr, y_ptr, gate_stride, N, eps, BLOCK: tl.constexpr):
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    groups = tl.num_programs(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < N
    here = row * N * groups + group * N + columns
    x = tl.load(x_ptr + here, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_stride + group * N + columns, mask=inside, other=0.0).to(tl.float32)
    x *= gate * tl.sigmoid(gate)
    rstd = tl.rsqrt(tl.sum(x * x, axis=0) / N + eps)
    weight = tl.load(weight_ptr + group * N + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + here, (x * rstd * weight).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gated_backward(
    x_ptr,
    gate_ptr,
    weight_ptr,
    dy_ptr,
    y_ptr,
    dx_ptr,
    dgate_ptr,
    dweight_ptr,
    gate_stride,
    M,
    N,
    rows,
    eps,
    BLOCK: tl.constexpr,
):
    program, group = tl.program_id(0), tl.program_id(1)
    groups = tl.num_programs(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < N
    weight = tl.load(weight_ptr + group * N + columns, mask=inside, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK,), dtype=tl.float32)
    for i in range(0, rows):
        row = (program * rows + i).to(tl.int64)
        mask = inside & (row < M)
        here = row * N * groups + group * N + columns
        there = row * gate_stride + group * N + columns
        x = tl.load(x_ptr + here, mask=mask, other=0.0).to(tl.float32)
        gate = tl.load(gate_ptr + there, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + here, mask=mask, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        gated = x * silu
        rstd = tl.rsqrt(tl.sum(gated * gated, axis=0) / N + eps)
        normed = gated * rstd
        tl.store(y_ptr + here, (normed * weight).to(y_ptr.dtype.element_ty), mask=mask)
        dweight += dy * normed
        scaled = dy * weight
        dgated = (scaled - normed * (tl.sum(scaled * normed, axis=0) / N)) * rstd
        tl.store(dx_ptr + here, (dgated * silu).to(dx_ptr.dtype.element_ty), mask=mask)
        dgate = dgated * x * sigmoid * (1 + gate * (1 - sigmoid))
        tl.store(dgate_ptr + there, dgate.to(dgate_ptr.dtype.element_ty), mask=mask)
    tl.store(dweight_ptr + program.to(tl.int64) * N * groups + group * N + columns, dweight, mask=inside)


def _launch(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(max(block // 512, 1), 16)}


def _programs(rows: int, device: torch.device) -> tuple[int, int]:
    """How many programs walk over the rows, and how many rows each."""
    most = 4 * torch.cuda.get_device_properties(device).multi_processor_count
    share = -(-rows // min(rows, most))
    return -(-rows // share), share


def rms_forward(x_MN: Tensor, weight_N: Tensor, eps: float) -> Tensor:
    """`ma2mba.ops.rms_norm` of contiguous rows."""
    y_MN = torch.empty(x_MN.shape, dtype=weight_N.dtype, device=x_MN.device)
    _rms_forward[(x_MN.shape[0],)](x_MN, weight_N, y_MN, x_MN.shape[1], eps, **_launch(x_MN.shape[1]))
    return y_MN


def rms_backward(
    x_MN: Tensor, weight_N: Tensor, eps: float, dy_MN: Tensor, residual_MN: Tensor
) -> tuple[Tensor, Tensor]:
    """`residual_MN` plus the gradient of x, in the dtype of x, and the gradient of the weight in fp32."""
    rows, width = x_MN.shape
    programs, share = _programs(rows, x_MN.device)
    dx_MN = torch.empty_like(x_MN)
    partial = torch.empty(programs, width, dtype=torch.float32, device=x_MN.device)
    _rms_backward[(programs,)](
        x_MN, weight_N, dy_MN, residual_MN, dx_MN, partial, rows, width, share, eps, **_launch(width)
    )
    return dx_MN, partial.sum(0)


def gated_forward(x_MN: Tensor, gate_MN: Tensor, weight_N: Tensor, eps: float, groups: int) -> Tensor:
    """The gated norm of contiguous rows; the rows of the gate may lie apart."""
    rows, width = x_MN.shape
    y_MN = torch.empty_like(x_MN)
    _gated_forward[(rows, groups)](
        x_MN, gate_MN, weight_N, y_MN, gate_MN.stride(0), width // groups, eps, **_launch(width // groups)
    )
    return y_MN


def gated_backward(
    x_MN: Tensor, gate_MN: Tensor, weight_N: Tensor, eps: float, groups: int, dy_MN: Tensor, dgate_MN: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """y once more, the gradient of x, and the gradient of the weight in fp32; the gate's goes into `dgate_MN`,
    which lies as the gate does."""
    rows, width = x_MN.shape
    programs, share = _programs(rows, x_MN.device)
    y_MN, dx_MN = torch.empty_like(x_MN), torch.empty_like(x_MN)
    partial = torch.empty(programs, width, dtype=torch.float32, device=x_MN.device)
    _gated_backward[(programs, groups)](
        x_MN,
        gate_MN,
        weight_N,
        dy_MN,
        y_MN,
        dx_MN,
        dgate_MN,
        partial,
        gate_MN.stride(0),
        rows,
        width // groups,
        share,
        eps,
        **_launch(width // groups),
    )
    return y_MN, dx_MN, partial.sum(0)

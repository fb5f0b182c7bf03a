"""Root mean square norms on a GPU. Forward and backward each take one pass over memory.

M rows, N width. Rows may be apart in memory (the stride is an argument), but the elements of a row are contiguous. Some
kernels hold a row in two pieces of FIRST and REST columns, both powers of two: 2,560 = 2,048 + 512 leaves no thread
idle.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _load(ptr, columns, N, here):
    return tl.load(ptr + columns, mask=(columns < N) & here, other=0.0).to(tl.float32)


@triton.jit
def _store(ptr, columns, N, here, value):
    tl.store(ptr + columns, value.to(ptr.dtype.element_ty), mask=(columns < N) & here)


@triton.jit
def _rms_forward(x_ptr, weight_ptr, y_ptr, N, eps, FIRST: tl.constexpr, REST: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * N
    y_ptr += row * N
    first = tl.arange(0, FIRST)
    x = _load(x_ptr, first, N, True)
    total = tl.sum(x * x, axis=0)
    if REST:
        rest = FIRST + tl.arange(0, REST)
        x_rest = _load(x_ptr, rest, N, True)
        total += tl.sum(x_rest * x_rest, axis=0)
    rstd = tl.rsqrt(total / N + eps)
    _store(y_ptr, first, N, True, x * rstd * _load(weight_ptr, first, N, True))
    if REST:
        _store(y_ptr, rest, N, True, x_rest * rstd * _load(weight_ptr, rest, N, True))


@triton.jit
def _rms_backward(x_ptr, weight_ptr, dy_ptr, residual_ptr, dx_ptr, dweight_ptr, M, N, rows, eps, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    weight = _load(weight_ptr, columns, N, True)
    dweight = tl.zeros((BLOCK,), dtype=tl.float32)
    for i in range(0, rows):
        row = (program * rows + i).to(tl.int64)
        here = row < M
        x = _load(x_ptr + row * N, columns, N, here)
        dy = _load(dy_ptr + row * N, columns, N, here)
        residual = _load(residual_ptr + row * N, columns, N, here)
        rstd = tl.rsqrt(tl.sum(x * x, axis=0) / N + eps)
        normed = x * rstd
        dweight += dy * normed
        scaled = dy * weight
        dx = residual + (scaled - normed * (tl.sum(scaled * normed, axis=0) / N)) * rstd
        _store(dx_ptr + row * N, columns, N, here, dx)
    _store(dweight_ptr + program.to(tl.int64) * N, columns, N, True, dweight)


@triton.jit
def _gated_forward(x_ptr, gate_ptr, weight_ptr, y_ptr, gate_stride, N, eps, FIRST: tl.constexpr, REST: tl.constexpr):
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    x_ptr += row * N * tl.num_programs(1) + group * N
    y_ptr += row * N * tl.num_programs(1) + group * N
    gate_ptr += row * gate_stride + group * N
    weight_ptr += group * N
    first = tl.arange(0, FIRST)
    gate = _load(gate_ptr, first, N, True)
    gated = _load(x_ptr, first, N, True) * gate * tl.sigmoid(gate)
    total = tl.sum(gated * gated, axis=0)
    if REST:
        rest = FIRST + tl.arange(0, REST)
        gate_rest = _load(gate_ptr, rest, N, True)
        gated_rest = _load(x_ptr, rest, N, True) * gate_rest * tl.sigmoid(gate_rest)
        total += tl.sum(gated_rest * gated_rest, axis=0)
    rstd = tl.rsqrt(total / N + eps)
    _store(y_ptr, first, N, True, gated * rstd * _load(weight_ptr, first, N, True))
    if REST:
        _store(y_ptr, rest, N, True, gated_rest * rstd * _load(weight_ptr, rest, N, True))


@triton.jit
def _add_pairs(a, b, c, d):
    return a + c, b + d


@triton.jit
def _gated_gradients(x, gate, sigmoid, dgated):
    """Return the gradients of x and of the gate, given the gradient of x * SiLU(gate)."""
    return dgated * gate * sigmoid, dgated * x * sigmoid * (1 + gate * (1 - sigmoid))


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
    FIRST: tl.constexpr,
    REST: tl.constexpr,
):
    program, group = tl.program_id(0), tl.program_id(1)
    width = N * tl.num_programs(1)
    first = tl.arange(0, FIRST)
    weight_ptr += group * N
    weight = _load(weight_ptr, first, N, True)
    dweight = tl.zeros((FIRST,), dtype=tl.float32)
    if REST:
        rest = FIRST + tl.arange(0, REST)
        weight_rest = _load(weight_ptr, rest, N, True)
        dweight_rest = tl.zeros((REST,), dtype=tl.float32)
    for i in tl.range(0, rows, num_stages=3):  # prefetches rows: 270 us, was 470 us
        row = (program * rows + i).to(tl.int64)
        here = row < M
        at = row * width + group * N
        there = row * gate_stride + group * N
        x = _load(x_ptr + at, first, N, here)
        gate = _load(gate_ptr + there, first, N, here)
        dy = _load(dy_ptr + at, first, N, here)
        sigmoid = tl.sigmoid(gate)
        gated = x * gate * sigmoid
        squares, dots = tl.reduce((gated * gated, dy * weight * gated), 0, _add_pairs)
        if REST:
            x_rest = _load(x_ptr + at, rest, N, here)
            gate_rest = _load(gate_ptr + there, rest, N, here)
            dy_rest = _load(dy_ptr + at, rest, N, here)
            sigmoid_rest = tl.sigmoid(gate_rest)
            gated_rest = x_rest * gate_rest * sigmoid_rest
            more = tl.reduce((gated_rest * gated_rest, dy_rest * weight_rest * gated_rest), 0, _add_pairs)
            squares += more[0]
            dots += more[1]
        rstd = tl.rsqrt(squares / N + eps)
        mean = dots * rstd / N
        normed = gated * rstd
        dweight += dy * normed
        _store(y_ptr + at, first, N, here, normed * weight)
        dx, dgate = _gated_gradients(x, gate, sigmoid, (dy * weight - normed * mean) * rstd)
        _store(dx_ptr + at, first, N, here, dx)
        _store(dgate_ptr + there, first, N, here, dgate)
        if REST:
            normed_rest = gated_rest * rstd
            dweight_rest += dy_rest * normed_rest
            _store(y_ptr + at, rest, N, here, normed_rest * weight_rest)
            dgated_rest = (dy_rest * weight_rest - normed_rest * mean) * rstd
            dx_rest, dgate_rest = _gated_gradients(x_rest, gate_rest, sigmoid_rest, dgated_rest)
            _store(dx_ptr + at, rest, N, here, dx_rest)
            _store(dgate_ptr + there, rest, N, here, dgate_rest)
    dweight_ptr += program.to(tl.int64) * width + group * N
    _store(dweight_ptr, first, N, True, dweight)
    if REST:
        _store(dweight_ptr, rest, N, True, dweight_rest)


def _launch(width: int, columns_per_warp: int) -> dict[str, int]:
    first = max(1 << (width.bit_length() - 1), 16)
    rest = triton.next_power_of_2(width - first) if width > first else 0
    return {"FIRST": first, "REST": rest, "num_warps": min(max(first // columns_per_warp, 1), 16)}


def _programs(rows: int, device: torch.device, per_processor: int) -> tuple[int, int]:
    """Return the number of programs, and of rows for each. More programs write more partial sums."""
    most = per_processor * torch.cuda.get_device_properties(device).multi_processor_count
    share = -(-rows // min(rows, most))
    return -(-rows // share), share


def rms_forward(x_MN: Tensor, weight_N: Tensor, eps: float) -> Tensor:
    """`ma2mba.ops.rms_norm` for contiguous rows."""
    rows, width = x_MN.shape
    y_MN = torch.empty(x_MN.shape, dtype=weight_N.dtype, device=x_MN.device)
    _rms_forward[(rows,)](x_MN, weight_N, y_MN, width, eps, **_launch(width, 512))
    return y_MN


def rms_backward(
    x_MN: Tensor, weight_N: Tensor, eps: float, dy_MN: Tensor, residual_MN: Tensor
) -> tuple[Tensor, Tensor]:
    """Return `residual_MN` plus the gradient of x, in the dtype of x, and the gradient of the weight in fp32."""
    rows, width = x_MN.shape
    programs, share = _programs(rows, x_MN.device, 2)
    dx_MN = torch.empty_like(x_MN)
    partial = torch.empty(programs, width, dtype=torch.float32, device=x_MN.device)
    _rms_backward[(programs,)](
        *(x_MN, weight_N, dy_MN, residual_MN, dx_MN, partial, rows, width, share, eps),
        BLOCK=triton.next_power_of_2(width),
        num_warps=4,
    )
    return dx_MN, partial.sum(0)


def gated_forward(x_MN: Tensor, gate_MN: Tensor, weight_N: Tensor, eps: float, groups: int) -> Tensor:
    """The gated `ma2mba.ops.rms_norm` for contiguous rows. The rows of the gate may be apart in memory."""
    rows, width = x_MN.shape
    y_MN = torch.empty_like(x_MN)
    _gated_forward[(rows, groups)](
        x_MN, gate_MN, weight_N, y_MN, gate_MN.stride(0), width // groups, eps, **_launch(width // groups, 512)
    )
    return y_MN


def gated_backward(
    x_MN: Tensor, gate_MN: Tensor, weight_N: Tensor, eps: float, groups: int, dy_MN: Tensor, dgate_MN: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the recomputed y, the gradient of x, and the gradient of the weight in fp32.

    Write the gradient of the gate to `dgate_MN`, which has the strides of the gate.
    """
    rows, width = x_MN.shape
    programs, share = _programs(rows, x_MN.device, 1)
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
        **_launch(width // groups, 512),
    )
    return y_MN, dx_MN, partial.sum(0)

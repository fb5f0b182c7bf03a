"""A Mamba-2 layer for one token of B sequences on a GPU. For one sequence a layer is three kernels.

B sequences, D model width, X outputs of the first projection (z, x, B, C, dt side by side), I inner width,
V channels of the convolution, W taps less one, H heads, P head width, N state size, S programs of the scan.

The time of a token is the time to read the weights and the states once. Norms therefore take no pass of their own:
rms_norm(x) @ W = ((x * norm_weight) @ W) / rms(x), and a kernel takes both sums at once. Where the GPU allows it, a
kernel starts to read weights and states while the kernel before is still at work (EARLY, programmatic dependent
launch). What the kernel before writes may be read only after `_wait`. Several sequences use matrix products of cuBLAS.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ma2mba.ops.triton.norm import rms_forward
from ma2mba.ops.types import LayerShape, LayerWeights


@triton.jit
def _wait(EARLY: tl.constexpr):
    """Let the next kernel start, then wait until the kernel before has finished. Every program must call this."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def _weight_tile(weight_ptr, row, column, rows, K):
    inside = (row < rows)[:, None] & (column < K)[None]
    return tl.load(weight_ptr + row[:, None].to(tl.int64) * K + column[None], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _load(ptr, at, N):
    return tl.load(ptr + at, mask=at < N, other=0.0).to(tl.float32)


@triton.jit
def _product_of_norm(
    x_ptr,
    norm_ptr,
    weight_ptr,
    out_ptr,
    eps,
    rows,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """out (rows,) = rms_norm(x (K,)) @ weight (rows, K).T for ROWS rows a program."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    weight = _weight_tile(weight_ptr, row, column, rows, K)
    norm = _load(norm_ptr, column, K)
    _wait(EARLY)
    x = _load(x_ptr, column, K)
    squares = x * x
    total = weight * (x * norm)[None]
    for start in tl.range(COLUMNS, K, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        x = _load(x_ptr, column, K)
        squares += x * x
        total += _weight_tile(weight_ptr, row, column, rows, K) * (x * _load(norm_ptr, column, K))[None]
    out = tl.sum(total, axis=1) * tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
    tl.store(out_ptr + row, out.to(out_ptr.dtype.element_ty), mask=row < rows)


@triton.jit
def _append(input_ptr, conv_ptr, channel, V, TAPS: tl.constexpr):
    """Drop the oldest input from the convolution's state (TAPS - 1, V) of one sequence, and append the newest."""
    here = channel < V
    for tap in tl.static_range(TAPS - 2):
        tl.store(conv_ptr + tap * V + channel, tl.load(conv_ptr + (tap + 1) * V + channel, mask=here), mask=here)
    tl.store(conv_ptr + (TAPS - 2) * V + channel, tl.load(input_ptr + channel, mask=here), mask=here)


@triton.jit
def _add_product(
    scaled_ptr,
    squares_ptr,
    weight_ptr,
    x_ptr,
    inputs_ptr,
    conv_ptr,
    V,
    eps,
    rows,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_2: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """x (rows,) += (scaled (K,) @ weight (rows, K).T) / rms for ROWS rows a program; `squares` holds parts of rms.

    The first programs also append the newest inputs to the convolution's state, which no program reads here.
    """
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    weight = _weight_tile(weight_ptr, row, column, rows, K)
    _wait(EARLY)
    total = weight * _load(scaled_ptr, column, K)[None]
    for start in tl.range(COLUMNS, K, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        total += _weight_tile(weight_ptr, row, column, rows, K) * _load(scaled_ptr, column, K)[None]
    rstd = tl.rsqrt(tl.sum(_load(squares_ptr, tl.arange(0, PARTS_2), PARTS), axis=0) / K + eps)
    x = tl.load(x_ptr + row, mask=row < rows, other=0.0)
    tl.store(x_ptr + row, x + tl.sum(total, axis=1) * rstd, mask=row < rows)
    _append(inputs_ptr, conv_ptr, tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), V, TAPS)


@triton.jit
def _add_rows(
    product_ptr,
    squares_ptr,
    x_ptr,
    inputs_ptr,
    conv_ptr,
    stride,
    V,
    eps,
    width,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_2: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """As `_add_product` for several sequences, whose `product` is given."""
    sequence = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    rstd = tl.rsqrt(tl.sum(_load(squares_ptr + sequence * PARTS, tl.arange(0, PARTS_2), PARTS), axis=0) / K + eps)
    x = _load(x_ptr + sequence * width, at, width) + _load(product_ptr + sequence * width, at, width) * rstd
    tl.store(x_ptr + sequence * width + at, x, mask=at < width)
    _append(inputs_ptr + sequence * stride, conv_ptr + sequence * (TAPS - 1) * V, at, V, TAPS)


@triton.jit
def _older(conv_ptr, taps_ptr, bias_ptr, channel, here, V, TAPS: tl.constexpr):
    """Return the share of the convolution that does not depend on the newest input, and the newest input's weight."""
    total = tl.load(bias_ptr + channel, mask=here, other=0.0)
    for tap in tl.static_range(TAPS - 1):
        older = tl.load(conv_ptr + tap * V + channel, mask=here, other=0.0).to(tl.float32)
        total += older * tl.load(taps_ptr + channel * TAPS + tap, mask=here, other=0.0)
    return total, tl.load(taps_ptr + channel * TAPS + TAPS - 1, mask=here, other=0.0)


@triton.jit
def _convolved(input_ptr, channel, here, older, weight):
    """Return SiLU of the convolution at the newest input of each channel."""
    total = older + tl.load(input_ptr + channel, mask=here, other=0.0).to(tl.float32) * weight
    return total * tl.sigmoid(total)


@triton.jit
def _softplus(x):
    """Return log(1 + exp(x)), to full precision for small results too."""
    exp = tl.exp(tl.minimum(x, 20.0))
    sum = 1.0 + exp
    rest = sum - 1.0
    return tl.where(x > 20.0, x, tl.where(rest == 0.0, exp, tl.log(sum) * exp / tl.where(rest == 0.0, 1.0, rest)))


@triton.jit
def _advance(
    projected_ptr,
    conv_ptr,
    ssm_ptr,
    taps_ptr,
    bias_ptr,
    dt_bias_ptr,
    A_ptr,
    D_ptr,
    norm_ptr,
    scaled_ptr,
    squares_ptr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    STATES: tl.constexpr,
    TAPS: tl.constexpr,
    PIECE: tl.constexpr,
    STATES_2: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Convolution, state, gated output times the norm's weight, and its squares: PIECE numbers of a sequence's head.

    The convolution's state (TAPS - 1, V) is only read: programs of other heads read the same B and C.
    """
    sequence, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    INNER: tl.constexpr = HEADS * WIDTH
    V: tl.constexpr = INNER + 2 * STATES
    at, state = tl.program_id(2) * PIECE + tl.arange(0, PIECE), tl.arange(0, STATES_2)
    place = (sequence * HEADS + head) * WIDTH * STATES + at[:, None] * STATES + state[None]
    inside = (at < WIDTH)[:, None] & (state < STATES)[None]
    ssm = tl.load(ssm_ptr + place, mask=inside, other=0.0)
    own, mine, key, keys = head * WIDTH + at, at < WIDTH, INNER + state, state < STATES
    conv_ptr += sequence * (TAPS - 1) * V
    x_older, x_weight = _older(conv_ptr, taps_ptr, bias_ptr, own, mine, V, TAPS)
    B_older, B_weight = _older(conv_ptr, taps_ptr, bias_ptr, key, keys, V, TAPS)
    C_older, C_weight = _older(conv_ptr, taps_ptr, bias_ptr, key + STATES, keys, V, TAPS)
    A, D, dt_bias = tl.load(A_ptr + head), tl.load(D_ptr + head), tl.load(dt_bias_ptr + head)
    norm = tl.load(norm_ptr + own, mask=mine, other=0.0).to(tl.float32)
    _wait(EARLY)

    projected_ptr += sequence * (INNER + V + HEADS)
    inputs_ptr = projected_ptr + INNER
    dt = _softplus(tl.load(inputs_ptr + V + head).to(tl.float32) + dt_bias)
    x = _convolved(inputs_ptr, own, mine, x_older, x_weight)
    B = _convolved(inputs_ptr, key, keys, B_older, B_weight)
    C = _convolved(inputs_ptr, key + STATES, keys, C_older, C_weight)
    ssm = ssm * tl.exp(dt * A) + (dt * x)[:, None] * B[None]
    tl.store(ssm_ptr + place, ssm, mask=inside)

    gate = tl.load(projected_ptr + own, mask=mine, other=0.0).to(tl.float32)
    gated = (tl.sum(ssm * C[None], axis=1) + D * x) * gate * tl.sigmoid(gate)
    tl.store(scaled_ptr + sequence * INNER + own, (gated * norm).to(scaled_ptr.dtype.element_ty), mask=mine)
    part = (sequence * HEADS + head) * tl.num_programs(2) + tl.program_id(2)
    tl.store(squares_ptr + part, tl.sum(gated * gated, axis=0))


class Tile(NamedTuple):
    """The rows and columns of a weight matrix that a program reads at a time, and its warps."""

    rows: int
    columns: int
    warps: int


PROJECTION, OUTPUT, HEAD = Tile(2, 512, 2), Tile(2, 1024, 4), Tile(4, 256, 2)
"""The best of 19 tiles on one H200 for the sizes of the 2.7B model: 14.7, 8.2 and 61.2 us, of which reading the weights
takes 12.6, 6.1 and 60.0."""
PIECE = 16
"""Numbers of a head's width that a program of the scan advances."""


@cache
def _early(device: torch.device) -> bool:
    """Return True if a kernel may start before the kernel before has finished."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def _launch(device: torch.device, **more: int) -> dict[str, int | bool]:
    return {**more, "EARLY": True, "launch_pdl": True} if _early(device) else {**more, "EARLY": False}


def norm_product(x_1D: Tensor, norm_D: Tensor, weight_XD: Tensor, out_1X: Tensor, eps: float, tile: Tile) -> None:
    """Write rms_norm(x) @ weight.T to `out_1X`, for one row x."""
    rows, width = weight_XD.shape
    _product_of_norm[(triton.cdiv(rows, tile.rows),)](
        *(x_1D, norm_D, weight_XD, out_1X, eps, rows, width, tile.rows, tile.columns),
        **_launch(x_1D.device, num_warps=tile.warps),
    )


class KernelStep:
    """`ma2mba.ops.open_step` on a GPU, for one head group. A call changes x_BD in place.

    A kernel reads the states before it waits for the kernel before. Between two calls of one step there must be a
    kernel that starts late, such as any of PyTorch's: the embedding of the next token is one.
    """

    in_place = True

    def __init__(self, weights: LayerWeights, shape: LayerShape, rows: int):
        w, (channels, _, taps) = weights, weights.conv_V1W.shape
        heads, inner, parts = w.D_H.numel(), w.gated_norm_I.numel(), triton.cdiv(shape.headdim, PIECE)
        self._weights, self._shape, self._inner = weights, shape, inner
        self._taps_VW, self._bias_V = w.conv_V1W[:, 0].float().contiguous(), w.conv_bias_V.float()
        self._dt_bias_H, self._D_H = w.dt_bias_H.float(), w.D_H.float()
        self._A_H = -torch.exp(w.A_log_H.float())
        self._projected_BX = w.in_proj_XD.new_empty(rows, inner + channels + heads)
        self._scaled_BI = w.in_proj_XD.new_empty(rows, inner)
        self._squares_BS = w.in_proj_XD.new_empty(rows, heads * parts, dtype=torch.float32)
        self._conv_BWV = w.in_proj_XD.new_zeros(rows, taps - 1, channels)
        self._ssm_BHPN = w.in_proj_XD.new_zeros(rows, heads, shape.headdim, shape.d_state, dtype=torch.float32)

    @torch.no_grad()
    def __call__(self, x_BD: Tensor) -> Tensor:
        if len(x_BD) == 1:
            self._one(x_BD)
        else:
            self._several(x_BD)
        return x_BD

    def _one(self, x_1D: Tensor) -> None:
        w, eps, tile = self._weights, self._shape.eps, OUTPUT
        norm_product(x_1D, w.norm_D, w.in_proj_XD, self._projected_BX, eps, PROJECTION)
        self._advance(1)
        rows, (channels, taps) = len(w.out_proj_DI), self._taps_VW.shape
        programs = max(triton.cdiv(rows, tile.rows), triton.cdiv(channels, tile.columns))
        parts = self._squares_BS.shape[1]
        _add_product[(programs,)](
            *(self._scaled_BI, self._squares_BS, w.out_proj_DI, x_1D, self._projected_BX[:, self._inner :]),
            *(self._conv_BWV, channels, eps, rows, self._inner, parts, triton.next_power_of_2(parts), taps),
            *(tile.rows, tile.columns),
            **_launch(x_1D.device, num_warps=tile.warps),
        )

    def _several(self, x_BD: Tensor) -> None:
        w, eps, inner = self._weights, self._shape.eps, self._inner
        torch.mm(rms_forward(x_BD, w.norm_D, eps), w.in_proj_XD.t(), out=self._projected_BX[: len(x_BD)])
        self._advance(len(x_BD))
        product_BD = self._scaled_BI[: len(x_BD)] @ w.out_proj_DI.t()
        (rows, width), (channels, taps), parts, block = x_BD.shape, self._taps_VW.shape, self._squares_BS.shape[1], 1024
        _add_rows[(rows, triton.cdiv(max(width, channels), block))](
            *(product_BD, self._squares_BS, x_BD, self._projected_BX[:, inner:], self._conv_BWV),
            *(self._projected_BX.stride(0), channels, eps, width, inner, parts, triton.next_power_of_2(parts)),
            *(taps, block),
        )

    def _advance(self, rows: int) -> None:
        _, heads, width, states = self._ssm_BHPN.shape
        _advance[(rows, heads, triton.cdiv(width, PIECE))](
            *(self._projected_BX, self._conv_BWV, self._ssm_BHPN, self._taps_VW, self._bias_V, self._dt_bias_H),
            *(self._A_H, self._D_H, self._weights.gated_norm_I, self._scaled_BI, self._squares_BS),
            *(heads, width, states, self._taps_VW.shape[1], PIECE, triton.next_power_of_2(states)),
            **_launch(self._ssm_BHPN.device),
        )

    def load(self, row: int, state: tuple[Tensor, ...]) -> None:
        conv_1VW, ssm_1HPN = state
        self._conv_BWV[row] = conv_1VW[0].t()
        self._ssm_BHPN[row] = ssm_1HPN[0]

    def state(self, row: int) -> tuple[Tensor, Tensor]:
        return self._conv_BWV[row : row + 1].clone().transpose(1, 2), self._ssm_BHPN[row : row + 1].clone()

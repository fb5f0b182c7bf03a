"""The allocations of the GPU kernels, on the meta device: they price the kernels without a GPU.

Nothing is computed. Each function allocates the tensors that its counterpart in `triton/layer.py`, `triton/scan.py` or
`triton/loss.py` allocates, and keeps them as long. Change both together; tests/parity/test_kernels.py compares their
prices on a GPU. Weights get no gradient here: on a GPU it is added to the sums of `main_grad.py`.

B batch, T tokens, M rows (B T), D model width, X outputs of the first projection, I inner width, V channels of the
convolution (in the loss: vocabulary), W taps less one, H heads, P head width, G head groups, N state size, C blocks,
Q tokens of a block (in the loss: positions of a block).
"""

from math import ceil
from typing import Any

import torch
from torch import Tensor

from ma2mba.ops.types import LOSS_BLOCK, LayerShape, LayerWeights

PROCESSORS = 132
"""Multiprocessors of an H100 or H200."""
SMALLEST_BLOCK = 32
"""The fewest rows that one program of the scan's kernels handles: there is one partial sum of decays for each."""


def layer_on_meta(
    x_BTD: Tensor,
    conv_BVW: Tensor,
    ssm_BHPN: Tensor,
    weights: LayerWeights,
    shape: LayerShape,
    product_BTD: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`mamba2_layer` on the meta device, with the allocations of the kernels."""
    return _Layer.apply(x_BTD, conv_BVW, ssm_BHPN, shape, product_BTD, *weights.tensors())


def _empty(*sizes: int, like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*sizes, dtype=dtype, device=like.device)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        conv_BVW: Tensor,
        ssm_BHPN: Tensor,
        shape: LayerShape,
        product_BTD: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        w = LayerWeights(*tensors)
        zxbcdt_BTX, y_BTI, product_BTD, final_BHPN = _run(x_BTD, ssm_BHPN, w, shape, product_BTD)
        small = 2 * w.D_H.numel() + w.conv_V1W.numel() + w.conv_bias_V.numel()
        ctx.shape, ctx.weights, ctx.small = shape, w, _empty(small, like=x_BTD)  # small parameters in fp32
        ctx.save_for_backward(x_BTD, conv_BVW, ssm_BHPN, zxbcdt_BTX, y_BTI)
        return x_BTD + product_BTD, torch.empty_like(conv_BVW), final_BHPN

    @staticmethod
    def backward(ctx: Any, dafter_BTD: Tensor, *_: Tensor) -> Any:
        x_BTD, conv_BVW, ssm_BHPN, zxbcdt_BTX, y_BTI = ctx.saved_tensors
        w, low, channels = ctx.weights, y_BTI.dtype, ctx.weights.conv_bias_V.shape[0]
        dzxbcdt_BTX = torch.empty_like(zxbcdt_BTX)
        do_BTD = dafter_BTD.to(low)
        dy_BTI = _gated_backward(y_BTI, do_BTD, w)
        del do_BTD
        convolved_BTV = _empty(*x_BTD.shape[:2], channels, like=x_BTD, dtype=low)
        dconvolved_BTV = torch.empty_like(convolved_BTV)
        dssm_BHPN = _Scan(convolved_BTV, ssm_BHPN, ctx.shape).backward()
        del dy_BTI, convolved_BTV
        torch.empty_like(x_BTD, dtype=low)  # the norm's output, for the weight's gradient
        du_BTD = dzxbcdt_BTX @ w.in_proj_XD
        dx_BTD, partial = torch.empty_like(x_BTD), _empty(2 * PROCESSORS, x_BTD.shape[2], like=x_BTD)
        del du_BTD, partial, dconvolved_BTV
        return dx_BTD, torch.empty_like(conv_BVW), dssm_BHPN, None, None, *(None for _ in w.tensors())


def _run(
    x_BTD: Tensor, ssm_BHPN: Tensor, w: LayerWeights, shape: LayerShape, product_BTD: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the first projection, the scan's output, the last projection, and the state after the last token."""
    (batch, tokens, width), low = x_BTD.shape, w.norm_D.dtype
    u_MD = _empty(batch * tokens, width, like=x_BTD, dtype=low)
    zxbcdt_BTX = (u_MD @ w.in_proj_XD.t()).unflatten(0, (batch, -1))
    convolved_BTV = _empty(batch, tokens, w.conv_bias_V.shape[0], like=x_BTD, dtype=low)
    y_BTI, final_BHPN = _Scan(convolved_BTV, ssm_BHPN, shape).forward(w.gated_norm_I.shape[0])
    if product_BTD is None:
        gated_MI = torch.empty_like(y_BTI).flatten(0, 1)
        product_BTD = (gated_MI @ w.out_proj_DI.t()).view(x_BTD.shape)
    return zxbcdt_BTX, y_BTI, product_BTD, final_BHPN


def _gated_backward(y_BTI: Tensor, do_BTD: Tensor, w: LayerWeights) -> Tensor:
    """Return the gradient of the scan's output. The gated norm is recomputed for the weight's gradient."""
    dgated_BTI = do_BTD @ w.out_proj_DI
    gated_BTI, dy_BTI = torch.empty_like(y_BTI), torch.empty_like(y_BTI)
    partial = _empty(PROCESSORS, y_BTI.shape[2], like=y_BTI)
    del dgated_BTI, gated_BTI, partial
    return dy_BTI


class _Scan:
    """The scan of one layer."""

    def __init__(self, convolved_BTV: Tensor, ssm_BHPN: Tensor, shape: LayerShape):
        self.like, self.low, self.shape, self.ssm_BHPN = convolved_BTV, convolved_BTV.dtype, shape, ssm_BHPN
        self.batch, self.tokens = convolved_BTV.shape[:2]
        self.heads, self.blocks = ssm_BHPN.shape[1], ceil(self.tokens / shape.block)
        together = max(min(ceil(self.batch * self.blocks * self.heads / PROCESSORS), self.heads // shape.ngroups), 1)
        self.splits = ceil(self.heads // shape.ngroups / together)

    def forward(self, inner: int) -> tuple[Tensor, Tensor]:
        steps = self._steps()
        entering_BCHPN, final_BHPN = self._entering(self.low)
        scores_BCGQQ = self._scores()
        y_BTI = _empty(self.batch, self.tokens, inner, like=self.like, dtype=self.low)
        del steps, entering_BCHPN, scores_BCGQQ
        return y_BTI, final_BHPN

    def backward(self) -> Tensor:
        """Return the gradient of the first state. The caller has allocated the gradients of x, dt, B and C."""
        steps, scores_BCGQQ = self._steps(), self._scores()
        entering_BCHPN, final_BHPN = self._entering(torch.float32)
        dentering_BCHPN = self._states(torch.float32)
        rounded_BCHPN, dleaving_BCHPN = self._states(self.low), self._states(self.low)
        dinitial_BHPN = torch.empty_like(self.ssm_BHPN, dtype=torch.float32)
        ddt_BHCQ, after_BHCQ, before_BHCQ = self._decays(), self._decays(), self._decays()
        dstates = [self._split(self.batch, self.tokens, last=self.shape.d_state) for _ in ("B", "C")]
        block = self.shape.block
        dscores_BCGQQ = self._split(self.batch, self.blocks, block, last=block)
        within = _empty(*ddt_BHCQ.shape[:3], ceil(block / SMALLEST_BLOCK), block, like=self.like)
        within_BHCQ = self._decays()
        del steps, scores_BCGQQ, entering_BCHPN, final_BHPN, dentering_BCHPN, rounded_BCHPN, dleaving_BCHPN
        del ddt_BHCQ, after_BHCQ, before_BHCQ, dstates, dscores_BCGQQ, within, within_BHCQ
        return dinitial_BHPN

    def _decays(self) -> Tensor:
        return _empty(self.batch, self.heads, self.blocks, self.shape.block, like=self.like)

    def _steps(self) -> tuple[Tensor, Tensor]:
        return self._decays(), self._decays()

    def _scores(self) -> Tensor:
        block = self.shape.block
        return _empty(self.batch, self.blocks, self.shape.ngroups, block, block, like=self.like)

    def _states(self, dtype: torch.dtype) -> Tensor:
        return _empty(self.batch, self.blocks, *self.ssm_BHPN.shape[1:], like=self.like, dtype=dtype)

    def _entering(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        added_BCHPN = self._states(torch.float32)
        entering_BCHPN, final_BHPN = self._states(dtype), torch.empty_like(self.ssm_BHPN, dtype=torch.float32)
        del added_BCHPN
        return entering_BCHPN, final_BHPN

    def _split(self, *sizes: int, last: int) -> Tensor:
        """Allocate a sum over heads. Each program of a kernel writes the sum over its own heads first."""
        partial = _empty(*sizes, self.splits, self.shape.ngroups, last, like=self.like)
        return partial.sum(-3)


class CrossEntropyOnMeta(torch.autograd.Function):
    """`cross_entropy_sum` on the meta device, with the allocations of the kernel."""

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, differentiable: bool) -> Tensor:
        wanted, ctx.whole = differentiable and any(ctx.needs_input_grad), len(x_MD) <= LOSS_BLOCK
        if wanted and not ctx.whole:
            dx_MD = torch.empty_like(x_MD)
            dweight_VD = torch.empty_like(weight_VD, dtype=torch.float32)
            ctx.save_for_backward(dx_MD, dweight_VD)
        for x_QD in x_MD.split(LOSS_BLOCK):
            logits_QV = x_QD @ weight_VD.t()
        if wanted and ctx.whole:
            ctx.save_for_backward(x_MD, weight_VD, logits_QV)
        return torch.empty_like(x_MD[:, 0], dtype=torch.float32).sum()

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        if not ctx.whole:
            return ctx.saved_tensors[0] * dloss, None, None, None
        x_MD, weight_VD, dlogits_MV = ctx.saved_tensors
        dx_MD = (dlogits_MV @ weight_VD) * dloss
        scaled_MD = x_MD * dloss
        del scaled_MD
        return dx_MD.to(x_MD.dtype), None, None, None

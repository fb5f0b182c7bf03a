"""Shapes, weights and limits that every implementation of the operations shares.

D model width, X outputs of the first projection (z, x, B, C, dt side by side: 2 I + 2 G N + H), I inner width,
V channels of the convolution (I + 2 G N), W taps, H heads, G head groups, N state size.
"""

from dataclasses import dataclass

from torch import Tensor

OFFSETS = 2**31
"""GPU kernels compute element offsets in signed 32-bit integers."""
LOSS_BLOCK = 4096
"""Positions whose logits exist at one time in the loss on a GPU."""


@dataclass(frozen=True)
class LayerShape:
    """The sizes of a layer that the shapes of its weights do not determine. `block`: tokens of a block of the scan."""

    headdim: int
    ngroups: int
    d_state: int
    block: int
    eps: float


@dataclass(frozen=True)
class LayerWeights:
    """The parameters of a layer, in the shapes of state-spaces/mamba."""

    norm_D: Tensor
    in_proj_XD: Tensor
    conv_V1W: Tensor
    conv_bias_V: Tensor
    dt_bias_H: Tensor
    A_log_H: Tensor
    D_H: Tensor
    gated_norm_I: Tensor
    out_proj_DI: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)


def most_tokens(batch: int, width: int, block: int) -> int:
    """Return the most tokens that one call of the GPU kernels takes: a multiple of `block`.

    `width` is the number of outputs of the first projection, the widest tensor of a layer. All offsets in that tensor
    (batch, tokens, width) stay below 2^31.
    """
    return max(block, (OFFSETS - 1) // (batch * width) // block * block)

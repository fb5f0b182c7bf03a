"""Shapes, weights and limits that every implementation of the operations shares.

B batch, T tokens, D model width, X outputs of the first projection (z, x, B, C, dt side by side: 2 I + 2 G N + H),
I inner width, V channels of the convolution (I + 2 G N), W taps less one, H heads, P head width, G groups,
N state size.
"""

from dataclasses import dataclass

from torch import Tensor

OFFSETS = 2**31
"""A GPU's kernels compute element offsets in 32 signed bits."""


@dataclass(frozen=True)
class LayerShape:
    """What the sizes of the tensors do not tell."""

    headdim: int
    ngroups: int
    d_state: int
    block: int
    eps: float


@dataclass(frozen=True)
class LayerWeights:
    """The parameters of a layer, as state-spaces/mamba shapes them (`conv_V1W` has all taps)."""

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
    """The most tokens that one call of a GPU's kernels may see: the widest tensor (batch, tokens, width), the first
    projection's output, keeps every offset below 2^31."""
    return max(block, (OFFSETS - 1) // (batch * width) // block * block)


PART = 4096
"""Positions whose logits exist at one time on a GPU."""

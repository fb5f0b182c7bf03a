"""A causal depthwise convolution in plain torch, with its state as argument and result.

B batch, T tokens, D channels, W taps.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from ma2mba.ops.sequence_parallel import inputs_before


def causal_conv(
    x_BTD: Tensor, weight_DW: Tensor, bias_D: Tensor, state_BDW: Tensor, group: ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """Return the SiLU of a causal depthwise convolution (batch, tokens, channels), and the state after x.

    `state_BDW` (batch, channels, W - 1) holds the last inputs before x, oldest first: zeros at the start of a sequence.
    x may have any number of tokens. With a process group, x is this rank's slice of the tokens, and the states are the
    states before and after all slices (`ma2mba.ops.sequence_parallel`).
    """
    taps = weight_DW.shape[1]
    tokens = x_BTD.shape[1]
    after_BDW = None
    if group is not None:
        state_BDW, after_BDW = inputs_before(x_BTD, state_BDW, group)
    padded_BTD = torch.cat([state_BDW.transpose(1, 2).to(x_BTD.dtype), x_BTD], dim=1)
    y_BTD = bias_D + padded_BTD[:, :tokens] * weight_DW[:, 0]
    for tap in range(1, taps):
        y_BTD = y_BTD + padded_BTD[:, tap : tap + tokens] * weight_DW[:, tap]
    if after_BDW is None:
        # A copy, because a view would keep the whole padded input alive as long as the state is kept.
        after_BDW = padded_BTD[:, tokens:].transpose(1, 2).clone()
    return F.silu(y_BTD), after_BDW

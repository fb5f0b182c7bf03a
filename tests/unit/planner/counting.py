"""Count the bytes that a run of the engine takes."""

import torch
from torch import nn

from ma2mba.magc import Plan, checkpoint
from ma2mba.planner.meter import measuring


def counted(layers: nn.ModuleList, tokens: int, width: int, plan: Plan) -> int:
    """Return the peak bytes of `checkpoint` and its backward on zeros (1, tokens, width)."""
    with measuring(torch.device("cpu")) as meter:
        x = torch.zeros(1, tokens, width, requires_grad=True)
        y, _ = checkpoint(layers, x, None, plan)
        del _
        y.backward(torch.ones_like(y))
    return meter.peak

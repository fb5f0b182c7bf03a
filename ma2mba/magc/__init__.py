"""Multi-Axis Gradient Checkpointing (arXiv 2411.19460): exact gradients of recurrent models over very long sequences.

    from ma2mba.magc import Plan, checkpoint
    y, states = checkpoint(layers, x, states, Plan(chunk_tokens=4096, group_layers=8))

Needs only PyTorch, and knows nothing about video or Mamba. `attach` and `detach` live in `ma2mba.adapters.attach`; they
are imported when first asked for.
"""

from typing import Any

from ma2mba.magc.api import Streamer, checkpoint, stream
from ma2mba.magc.plan import Plan

__all__ = ["Plan", "Streamer", "attach", "checkpoint", "detach", "stream"]


def __getattr__(name: str) -> Any:
    if name in ("attach", "detach"):
        from ma2mba.adapters import attach

        return getattr(attach, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

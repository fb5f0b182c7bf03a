"""Multi-Axis Gradient Checkpointing (arXiv 2411.19460): exact gradients of recurrent models over very long sequences.

    from ma2mba.magc import Plan, checkpoint
    y, states = checkpoint(layers, x, states, Plan(chunk_tokens=4096, group_layers=8))

Needs nothing but PyTorch, and knows nothing of video or of Mamba.
"""

from ma2mba.magc.api import Streamer, checkpoint, stream
from ma2mba.magc.attach import attach, detach
from ma2mba.magc.plan import Plan

__all__ = ["Plan", "Streamer", "attach", "checkpoint", "detach", "stream"]

"""Multi-Axis Gradient Checkpointing (MA-GC, arXiv 2411.19460): exact gradients of recurrent models on long sequences.

    from ma2mba.magc import Plan, checkpoint
    y, states = checkpoint(layers, x, states, Plan(chunk_tokens=4096, group_layers=8))

Ordinary gradient checkpointing cuts the layers into groups. MA-GC also cuts the sequence into chunks. A group of layers
on one chunk is a cell (`cell.py`). Forward keeps only what is needed to run each cell again; backward runs the cells in
reverse order, recomputes one cell at a time, and takes its gradients.

Where do the gradients go?

- The gradient of a chunk's initial recurrent state goes to the chunk before: it is the gradient of the final state of
  that chunk. `Scan.backward` (`scan.py`) passes it on. The first chunk's goes to the caller's `states`.
- The gradient of a group's input goes to the group of layers before it. `Chain.backward` (`chain.py`) passes it on. The
  first group's goes to x, or to the front of `stream`.
- The gradients of parameters are summed over all cells in fp32 (`gradients.py`). Autograd gets each sum once
  (`run.py`).

Read `plan.py`, `api.py`, `run.py`, `cell.py`, `chain.py` and `scan.py` in this order. The engine needs only
PyTorch and knows nothing about video or Mamba. `attach` and `detach` are in `ma2mba.adapters.attach`.

All functions are imported on first use: recipes are validated with `Plan` before torch is imported, which takes
seconds.
"""

from typing import TYPE_CHECKING, Any

from ma2mba.magc.plan import Plan

if TYPE_CHECKING:
    from ma2mba.magc.api import Streamer, checkpoint, stream
    from ma2mba.magc.comparison import check

__all__ = ["Plan", "Streamer", "attach", "check", "checkpoint", "detach", "stream"]


def __getattr__(name: str) -> Any:
    if name in ("attach", "detach"):
        from ma2mba.adapters import attach

        return getattr(attach, name)
    if name in ("Streamer", "checkpoint", "stream"):
        from ma2mba.magc import api

        return getattr(api, name)
    if name == "check":
        from ma2mba.magc import comparison

        return comparison.check
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

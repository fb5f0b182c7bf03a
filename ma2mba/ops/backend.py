"""Which implementation of the operations runs on a device."""

import logging
import os
from functools import cache
from typing import Literal

import torch

Backend = Literal["torch", "triton"]
CHOICE = "MA2MBA_OPS"
logger = logging.getLogger("ma2mba.ops")


def backend(device: torch.device) -> Backend:
    """Which implementation runs on this device; said in the log once.

    The environment variable MA2MBA_OPS=torch keeps to plain torch. MA2MBA_OPS=triton raises ImportError where kernels
    are missing.
    """
    return _choose(os.environ.get(CHOICE, ""), device.type)


@cache
def _choose(asked: str, device_type: str) -> Backend:
    if asked not in ("", "torch", "triton"):
        raise ValueError(f"{CHOICE}={asked}: give torch or triton, or unset it")
    chosen: Backend = "torch"
    reason = "there is no GPU" if device_type != "cuda" else f"{CHOICE}=torch asks for it"
    if device_type == "cuda" and asked != "torch":
        os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")  # what tuning found is good for later processes too
        if not torch.backends.cuda.matmul.allow_tf32:
            os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")  # Triton's fp32 products are tf32 unless told
        try:
            import ma2mba.ops.layer_kernels  # noqa: F401

            chosen, reason = "triton", "mamba-ssm and causal-conv1d are installed"
        except ImportError as error:
            if asked == "triton":
                raise
            reason = f"the GPU's kernels are missing ({error}); install them with: pip install 'ma2mba[gpu]'"
    logger.info("operations on %s run in %s: %s", device_type, chosen, reason)
    return chosen

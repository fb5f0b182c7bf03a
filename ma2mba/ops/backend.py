"""Which implementation of the operations runs on a device."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal

import torch

from ma2mba.errors import UserError

Backend = Literal["torch", "triton", "shadow"]
CHOICE = "MA2MBA_OPS"
REMEDY = "install them with: pip install 'ma2mba[gpu]'"
_SHADOWS: ContextVar[bool] = ContextVar("shadows", default=False)
logger = logging.getLogger("ma2mba.ops")


def backend(device: torch.device) -> Backend:
    """Which implementation runs on this device; said in the log once.

    The environment variable MA2MBA_OPS=torch keeps to plain torch. Raises UserError for MA2MBA_OPS=triton where
    kernels are missing, and for another value. The meta device computes nothing: "shadow" there allocates what the
    kernels of a GPU would.
    """
    if device.type == "meta":
        return "shadow" if _SHADOWS.get() else "torch"
    return choice(device)[0]


def choice(device: torch.device) -> tuple[Backend, str]:
    """`backend` of a device that computes, and why."""
    return _choose(os.environ.get(CHOICE, ""), device.type)


@cache
def _choose(asked: str, device_type: str) -> tuple[Backend, str]:
    if asked not in ("", "torch", "triton"):
        raise UserError(f"{CHOICE}={asked}: give torch or triton, or unset it")
    chosen: Backend = "torch"
    reason = "there is no GPU" if device_type != "cuda" else f"{CHOICE}=torch asks for it"
    if device_type == "cuda" and asked != "torch":
        os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")  # what tuning found is good for later processes too
        if not torch.backends.cuda.matmul.allow_tf32:
            os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")  # Triton's fp32 products are tf32 unless told
        try:
            import ma2mba.ops.triton.layer  # noqa: F401

            chosen, reason = "triton", "mamba-ssm and causal-conv1d are installed"
        except ImportError as error:
            if asked == "triton":
                raise UserError(f"{CHOICE}=triton: the GPU's kernels are missing ({error}); {REMEDY}") from error
            reason = f"the GPU's kernels are missing ({error}); {REMEDY}"
    logger.info("operations on %s run in %s: %s", device_type, chosen, reason)
    return chosen, reason


@contextmanager
def kernels_on_meta() -> Iterator[None]:
    """Within the block, operations on the meta device allocate what a GPU's kernels would (`shadow.py`)."""
    token = _SHADOWS.set(True)
    try:
        yield
    finally:
        _SHADOWS.reset(token)

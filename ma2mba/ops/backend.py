"""Choose the implementation of the operations for a device."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal

import torch

from ma2mba.errors import UserError
from ma2mba.ops.kernel_cache import KernelCache

Backend = Literal["torch", "triton", "meta"]
CHOICE = "MA2MBA_OPS"
REMEDY = "install them with: pip install 'ma2mba[gpu]'"
_KERNELS_ON_META: ContextVar[bool] = ContextVar("kernels_on_meta", default=False)
logger = logging.getLogger("ma2mba.ops")


def backend(device: torch.device) -> Backend:
    """Return the implementation that runs on a device, and log the first choice for each kind of device.

    "torch" is plain torch, "triton" the kernels of a GPU. "meta" computes nothing and allocates what the kernels of a
    GPU would; it is chosen on the meta device within `kernels_on_meta`. The environment variable MA2MBA_OPS=torch
    forces plain torch. A GPU without its kernels runs plain torch, and each machine logs one warning. Raises UserError
    if MA2MBA_OPS=triton and the kernels are missing, and for any other value.
    """
    if device.type == "meta":
        return "meta" if _KERNELS_ON_META.get() else "torch"
    return choice(device)[0]


def choice(device: torch.device) -> tuple[Backend, str]:
    """Return the `backend` of a device other than meta, and the reason for the choice."""
    return _choose(os.environ.get(CHOICE, ""), device.type)


@cache
def _choose(asked: str, device_type: str) -> tuple[Backend, str]:
    if asked not in ("", "torch", "triton"):
        raise UserError(f"{CHOICE}={asked}: unknown value. Set {CHOICE} to torch or triton, or unset it")
    found: Backend = "torch"
    reason = "there is no GPU" if device_type != "cuda" else f"{CHOICE}=torch is set"
    if device_type == "cuda" and asked != "torch":
        os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")  # later processes reuse the tuned settings
        if not torch.backends.cuda.matmul.allow_tf32:
            os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")  # Triton's fp32 products are tf32 by default
        if torch.cuda.is_available() and (kernels := KernelCache.of(torch.device("cuda", 0))):
            kernels.use()
        try:
            import ma2mba.ops.triton.layer  # noqa: F401

            found, reason = "triton", "mamba-ssm and causal-conv1d are installed"
        except ImportError as error:
            if asked == "triton":
                raise UserError(f"{CHOICE}=triton: the GPU kernels are missing ({error}); {REMEDY}") from error
            reason = f"the GPU kernels are missing ({error}); {REMEDY}"
            _warn_of_missing_kernels(reason)
            return found, reason
    logger.info("operations on %s run in %s: %s", device_type, found, reason)
    return found, reason


def _warn_of_missing_kernels(reason: str) -> None:
    """Warn in the first process of each machine; a launcher numbers them in LOCAL_RANK."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        logger.warning("WARNING: the GPU runs plain PyTorch, slower and with more memory: %s", reason)


@contextmanager
def kernels_on_meta() -> Iterator[None]:
    """Within the block, operations on the meta device allocate what the kernels of a GPU would (`meta.py`)."""
    token = _KERNELS_ON_META.set(True)
    try:
        yield
    finally:
        _KERNELS_ON_META.reset(token)

"""Which dtype the weights of a model have: the rule for training, asking and evaluating."""

import torch

NAMES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def choose_dtype(precision: str, device: torch.device | str) -> torch.dtype:
    """Return the dtype that "auto", "bf16" or "fp32" means. "auto" is bf16 on CUDA and on CPUs with AMX, else fp32.

    Raise ValueError for another name.
    """
    if precision == "auto":
        precision = "bf16" if torch.device(device).type == "cuda" or _has_amx() else "fp32"
    if precision not in NAMES:
        raise ValueError(f"dtype: {precision!r} is unknown. Use auto, {' or '.join(NAMES)}")
    return NAMES[precision]


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype in messages."""
    return next((name for name, known in NAMES.items() if known == dtype), str(dtype).removeprefix("torch."))


def _has_amx() -> bool:
    """Return True on a CPU that multiplies matrices of bf16 by AMX. PyTorch 2.10 has no `get_capabilities` yet."""
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    return torch.cpu._is_amx_tile_supported()

"""Build modules whose parameters a file will fill: on the meta device first, and never initialised."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakIdKeyDictionary

from ma2mba.errors import UserError
from ma2mba.memory import machine_bytes
from ma2mba.model.dtypes import name_of
from ma2mba.model.tensor_file import reason_of
from ma2mba.model.weights import Weights

M = TypeVar("M", bound=nn.Module)
KEPT = "kept_in_fp32"
"""The attribute in which a module names its parameters that stay in fp32 in a model of bf16."""


def on_meta(build: Callable[[], M], weights: Weights, config: object, dtype: torch.dtype = torch.float32) -> M:
    """Return the module that `build` makes, on the meta device: without memory for its weights and buffers.

    Raise UserError, naming `config`, if it cannot be built, or has more parameters than `weights` can hold.
    """
    left = 2 * len(weights.tensors) + 100  # an encoder may build layers and drop them again

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise UserError(
                f"{config}: describes a larger model than the {len(weights.tensors)} tensors of {weights.path}. "
                "Get both files again, from the same model"
            )

    try:
        with torch.device("meta"), parameters_on_meta(dtype, count):
            return build()
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise UserError(f"{config}: such a model cannot be built ({reason_of(error)}). Correct the file") from error


def require_memory(module: nn.Module, device: torch.device | str, source: object, dtype: torch.dtype) -> None:
    """Raise UserError if the parameters of a module on the meta device exceed the memory of `device`.

    A file with holes may claim any size.
    """
    on_gpu = torch.device(device).type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else machine_bytes()
    needed = sum(p.nbytes for p in module.parameters())
    if needed > memory:
        raise UserError(
            f"{source}: needs {needed / 1e9:,.1f} GB of memory in {name_of(dtype)}, but this "
            f"{'GPU' if on_gpu else 'machine'} has {memory / 1e9:,.1f} GB. Use one with more memory"
        )


def build_empty(build: Callable[[], M], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> M:
    """Return the module that `build` makes on `device`. Its parameters have no values yet, its buffers have.

    Parameters are in `dtype`, except for those that their module names in `kept_in_fp32`. Buffers keep their dtype.
    """
    with parameters_on_meta(dtype):
        module = build()
    allocate(module, device)
    return module


def allocate(module: nn.Module, device: torch.device | str) -> None:
    """Replace the parameters on the meta device by empty parameters on `device`, and move the buffers there."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        for name, p in list(part.named_parameters(recurse=False, remove_duplicate=False)):
            if p.is_meta and p not in made:
                made[p] = nn.Parameter(torch.empty_like(p, device=device), p.requires_grad)
            setattr(part, name, made.get(p, p))
        for name, buffer in list(part.named_buffers(recurse=False, remove_duplicate=False)):
            setattr(part, name, buffer.to(device))


@contextmanager
def parameters_on_meta(dtype: torch.dtype = torch.float32, count: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Move each parameter to the meta device when a module registers it: what initialises it then costs nothing.

    Memory that was never written takes no space. Buffers are made and filled as usual.
    """
    moved = WeakIdKeyDictionary()

    def move(module: nn.Module, name: str, p: nn.Parameter) -> nn.Parameter:
        count()
        if p not in moved:
            kept = name in getattr(module, KEPT, ())
            wanted = torch.promote_types(dtype, torch.float32) if kept else dtype
            moved[p] = nn.Parameter(p.detach().to("meta", wanted), p.requires_grad)
            moved[moved[p]] = moved[p]
        return moved[p]

    handle = register_module_parameter_registration_hook(move)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()

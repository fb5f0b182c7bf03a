"""What a recomputation must share with its forward: the random numbers and the autocast mode."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function, which `torch.compile` leaves alone. Its compiler is not imported for this: that is slow."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        dynamo = sys.modules.get("torch._dynamo")
        return dynamo.disable(function)(*args, **kwargs) if dynamo else function(*args, **kwargs)

    return run


@contextmanager
def without_cast_cache() -> Iterator[None]:
    """Let autocast cast a weight anew in every use while a block runs.

    Before torch 2.13, a cast that was made under no_grad is used again with gradients, and the weight gets none.
    """
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


@dataclass(frozen=True)
class ForwardContext:
    """The states of torch's random number generators, and for each kind of device: autocast enabled, and its dtype."""

    cpu_generator: Tensor
    device_generator: Tensor | None
    autocast: tuple[tuple[str, bool, torch.dtype], ...]

    @staticmethod
    def current() -> "ForwardContext":
        """Return the context of this moment. Includes the current GPU if CUDA is initialized."""
        on_device = torch.cuda.is_available() and torch.cuda.is_initialized()
        kinds = ("cpu", "cuda") if on_device else ("cpu",)
        return ForwardContext(
            torch.get_rng_state(),
            torch.cuda.get_rng_state() if on_device else None,
            tuple((k, torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds),
        )

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Run a block in this context. Restore the generators of the caller afterwards."""
        caller = ForwardContext.current()
        with ExitStack() as stack:
            stack.callback(caller._set_generators)
            self._set_generators()
            for kind, enabled, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, enabled=enabled, dtype=dtype, cache_enabled=False))
            yield

    def _set_generators(self) -> None:
        torch.set_rng_state(self.cpu_generator)
        if self.device_generator is not None:
            torch.cuda.set_rng_state(self.device_generator)

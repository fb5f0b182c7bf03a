"""What a recomputation must share with its forward: the random numbers and the autocast mode."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


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

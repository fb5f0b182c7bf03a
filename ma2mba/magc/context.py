"""What a recomputation must find as it was: the random number generators and autocast."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ForwardContext:
    cpu_generator: Tensor
    device_generator: Tensor | None
    autocast: tuple[tuple[str, bool, torch.dtype], ...]

    @staticmethod
    def capture() -> "ForwardContext":
        on_device = torch.cuda.is_available() and torch.cuda.is_initialized()
        kinds = ("cpu", "cuda") if on_device else ("cpu",)
        return ForwardContext(
            torch.get_rng_state(),
            torch.cuda.get_rng_state() if on_device else None,
            tuple((k, torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds),
        )

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Run a block as if at the time of `capture`; afterwards the generators go on from where they were."""
        now = ForwardContext.capture()
        with ExitStack() as stack:
            stack.callback(now._set_generators)
            self._set_generators()
            for kind, enabled, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, enabled=enabled, dtype=dtype, cache_enabled=False))
            yield

    def _set_generators(self) -> None:
        torch.set_rng_state(self.cpu_generator)
        if self.device_generator is not None:
            torch.cuda.set_rng_state(self.device_generator)

"""Sums of parameter gradients over all cells of a backward, in fp32.

Every chunk gives every parameter a gradient. Adding these in bf16 would round once per chunk; the sums here round once.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

MAIN_GRAD = "main_grad"
"""The attribute of a parameter that holds its sum. `ma2mba/ops/main_grad.py` reads it by the same name."""


class GradientSums:
    """One sum per parameter, in fp32 (fp64 for an fp64 parameter). Use it as a context manager around one backward.

    Inside the context, each parameter on a GPU has its sum as the attribute `main_grad` (Megatron's convention). An
    operation may add its gradient there itself and give autograd None. A matrix product can then add to the sum while
    it multiplies, which saves passes over memory and does not round to the parameter's dtype.
    """

    def __init__(self, parameters: Iterable[Tensor] = ()) -> None:
        self._parameters = tuple(parameters)
        self._sums: dict[Tensor, Tensor] = {}
        self._unused: dict[Tensor, int] = {}  # parameter -> version of its sum while the sum is still zero

    def __enter__(self) -> "GradientSums":
        for parameter in self._parameters:
            if parameter.is_cuda and not hasattr(parameter, MAIN_GRAD):
                if parameter not in self._sums:
                    self._sums[parameter] = _zeros(parameter)
                    self._unused[parameter] = self._sums[parameter]._version
                setattr(parameter, MAIN_GRAD, self._sums[parameter])
        return self

    def __exit__(self, *_: object) -> None:
        for parameter in tuple(self._sums):
            self._detach(parameter)
        self._sums.clear()
        self._unused.clear()

    def add(self, parameter: Tensor, gradient: Tensor | None) -> None:
        """Add a gradient to the parameter's sum; None adds nothing."""
        if gradient is None:
            return
        if parameter in self._sums:
            self._sums[parameter] += gradient
        else:
            high = torch.promote_types(gradient.dtype, torch.float32)
            self._sums[parameter] = gradient.to(high, copy=True)

    def take(self, parameter: Tensor) -> Tensor | None:
        """Return the sum in the parameter's dtype and free it. Return None if no cell gave the parameter a gradient."""
        if parameter not in self._sums:
            return None
        self._detach(parameter)
        total = self._sums.pop(parameter)
        return None if total._version == self._unused.get(parameter) else total.to(parameter.dtype)

    def _detach(self, parameter: Tensor) -> None:
        """Remove `main_grad` if it is this object's sum."""
        if parameter.__dict__.get(MAIN_GRAD) is self._sums[parameter]:
            delattr(parameter, MAIN_GRAD)


class PersistentSums(GradientSums):
    """Sums that keep their memory from step to step, because captured CUDA graphs add to fixed addresses.

    Entering the context sets them to zero.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__(parameters)
        self._sums = {parameter: _zeros(parameter) for parameter in self._parameters}

    def __enter__(self) -> "PersistentSums":
        for total in self._sums.values():
            total.zero_()
        super().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for parameter in self._sums:
            self._detach(parameter)

    def take(self, parameter: Tensor) -> Tensor:
        """Return a copy of the sum in the parameter's dtype; zeros if no cell gave the parameter a gradient."""
        return self._sums[parameter].to(parameter.dtype, copy=True)


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))

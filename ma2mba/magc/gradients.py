"""Sums of the gradients of parameters over the cells of a backward, in fp32."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

MAIN_GRAD = "main_grad"


class GradientSums:
    """Sums the gradients of parameters over cells in fp32 (fp64 for fp64 parameters), rounded once at the end.

    A parameter on a GPU carries its sum as `main_grad` meanwhile: an operation may add its part there itself (that of a
    matrix inside the product) and give autograd None. That spares passes over gradients and their rounding to the
    parameter's dtype (the convention of Megatron).
    """

    def __init__(self, parameters: Iterable[nn.Parameter] = ()) -> None:
        self._parameters = tuple(parameters)
        self._sums: dict[nn.Parameter, Tensor] = {}

    def __enter__(self) -> "GradientSums":
        for parameter in self._parameters:
            if parameter.is_cuda and not hasattr(parameter, MAIN_GRAD):
                if parameter not in self._sums:
                    self._sums[parameter] = _zeros(parameter)
                setattr(parameter, MAIN_GRAD, self._sums[parameter])
        return self

    def __exit__(self, *_: object) -> None:
        for parameter in tuple(self._sums):
            self._detach(parameter)
        self._sums.clear()

    def add(self, parameter: nn.Parameter, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        if parameter in self._sums:
            self._sums[parameter] += gradient
        else:
            high = torch.promote_types(gradient.dtype, torch.float32)
            self._sums[parameter] = gradient.to(high, copy=True)

    def take(self, parameter: nn.Parameter) -> Tensor:
        """The gradient in the parameter's dtype; zeros when no cell used it, so that every rank has one."""
        if parameter not in self._sums:
            return torch.zeros_like(parameter)
        self._detach(parameter)
        return self._sums.pop(parameter).to(parameter.dtype)

    def _detach(self, parameter: nn.Parameter) -> None:
        if parameter.__dict__.get(MAIN_GRAD) is self._sums[parameter]:
            delattr(parameter, MAIN_GRAD)


class PersistentSums(GradientSums):
    """A sink whose sums stay where they are from step to step, as captured CUDA graphs need; zeroed when entered."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters)
        self._sums = {parameter: _zeros(parameter) for parameter in self._parameters}

    def __enter__(self) -> "PersistentSums":
        for total in self._sums.values():
            total.zero_()
        super().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """The sums stay."""
        for parameter in self._sums:
            self._detach(parameter)

    def take(self, parameter: nn.Parameter) -> Tensor:
        return self._sums[parameter].to(parameter.dtype, copy=True)


def _zeros(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))

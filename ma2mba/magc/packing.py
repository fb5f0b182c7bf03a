"""The states of every layer in one buffer: one allocation and one copy for all of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

State = tuple[Tensor, ...]
ALIGNMENT = 256
"""Bytes; what CUDA's allocator aligns to."""


@dataclass(frozen=True)
class Layout:
    """How states lie in a buffer: how many tensors each has; every tensor's dtype, shape, strides and first byte."""

    sizes: tuple[int, ...]
    places: tuple[tuple[torch.dtype, torch.Size, tuple[int, ...], int], ...]
    nbytes: int

    @staticmethod
    def of(states: Sequence[State]) -> "Layout":
        places, end = [], 0
        for tensor in _flat(states):
            places.append((tensor.dtype, tensor.shape, torch.empty_like(tensor, device="meta").stride(), end))
            end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return Layout(tuple(map(len, states)), tuple(places), end)

    def states(self, buffer: Tensor) -> "PackedStates":
        """The states that lie in `buffer`, a tensor of `nbytes` bytes: views."""
        views = (
            buffer[start : start + shape.numel() * dtype.itemsize].view(dtype).as_strided(shape, strides)
            for dtype, shape, strides, start in self.places
        )
        return PackedStates([tuple(next(views) for _ in range(size)) for size in self.sizes], self, buffer)


class PackedStates(list[State]):
    """States that lie in one buffer."""

    def __init__(self, states: Iterable[State], layout: Layout, buffer: Tensor):
        super().__init__(states)
        self.layout, self.buffer = layout, buffer

    def load(self, states: Sequence[State]) -> None:
        """Copy other states of the same shapes here."""
        if isinstance(states, PackedStates) and states.layout == self.layout:
            self.buffer.copy_(states.buffer)
        else:
            _copy(_flat(self), _flat(states))

    def load_gradients(self, gradients: Sequence[tuple[Tensor | None, ...]]) -> None:
        """The same with gradients: zeros where there is none."""
        pairs = [*zip(_flat(self), (g for state in gradients for g in state), strict=True)]
        if isinstance(gradients, PackedStates) or all(given is not None for _, given in pairs):
            self.load(gradients)  # type: ignore[arg-type]
            return
        for fixed, given in pairs:
            fixed.zero_() if given is None else fixed.copy_(given)

    def clone(self) -> "PackedStates":
        return self.layout.states(self.buffer.clone())


def pack(states: Sequence[State]) -> PackedStates:
    """The same states in one buffer on their device: themselves if they are packed already, else a copy."""
    if isinstance(states, PackedStates):
        return states
    layout = Layout.of(states)
    packed = layout.states(torch.empty(layout.nbytes, dtype=torch.uint8, device=_flat(states)[0].device))
    packed.load(states)
    return packed


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """One kernel for each dtype, not one for each tensor."""
    for dtype in {t.dtype for t in targets}:
        pairs = [(t, s) for t, s in zip(targets, sources, strict=True) if t.dtype == dtype]
        ours, theirs = zip(*pairs, strict=True)
        torch._foreach_copy_(ours, theirs)


def _flat(states: Sequence[State]) -> list[Tensor]:
    return [t for state in states for t in state]

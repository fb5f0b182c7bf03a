"""The states of all layers in one buffer, which needs one allocation and one copy for all layers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

State = tuple[Tensor, ...]
ALIGNMENT = 256
"""Bytes. Tensors in a buffer are aligned as CUDA's allocator aligns them."""


@dataclass(frozen=True)
class BufferLayout:
    """Where states are in a buffer of `nbytes` bytes.

    sizes   Number of tensors of each state.
    places  Dtype, shape, strides and first byte of each tensor.
    """

    sizes: tuple[int, ...]
    places: tuple[tuple[torch.dtype, torch.Size, tuple[int, ...], int], ...]
    nbytes: int

    @staticmethod
    def of(states: Sequence[State]) -> "BufferLayout":
        places, end = [], 0
        for tensor in _flat(states):
            places.append((tensor.dtype, tensor.shape, torch.empty_like(tensor, device="meta").stride(), end))
            end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return BufferLayout(tuple(map(len, states)), tuple(places), end)

    def states(self, buffer: Tensor) -> "PackedStates":
        """Return the states in `buffer`, a uint8 tensor of `nbytes` bytes, as views."""
        views = (
            buffer[start : start + shape.numel() * dtype.itemsize].view(dtype).as_strided(shape, strides)
            for dtype, shape, strides, start in self.places
        )
        return PackedStates([tuple(next(views) for _ in range(size)) for size in self.sizes], self, buffer)


class PackedStates(list[State]):
    """States that are views of one buffer."""

    def __init__(self, states: Iterable[State], layout: BufferLayout, buffer: Tensor):
        super().__init__(states)
        self.layout, self.buffer = layout, buffer

    def load(self, states: Sequence[State]) -> None:
        """Copy states of the same shapes into this buffer."""
        if isinstance(states, PackedStates) and states.layout == self.layout:
            self.buffer.copy_(states.buffer)
        else:
            _copy(_flat(self), _flat(states))

    def load_gradients(self, gradients: Sequence[tuple[Tensor | None, ...]]) -> None:
        """Copy gradients of the same shapes into this buffer. None becomes zeros."""
        pairs = [*zip(_flat(self), (g for state in gradients for g in state), strict=True)]
        if isinstance(gradients, PackedStates) or all(given is not None for _, given in pairs):
            self.load(gradients)  # type: ignore[arg-type]
            return
        for fixed, given in pairs:
            fixed.zero_() if given is None else fixed.copy_(given)

    def clone(self) -> "PackedStates":
        return self.layout.states(self.buffer.clone())


def pack(states: Sequence[State]) -> PackedStates:
    """Return the states in one buffer on their device: a copy, or the same object if they are packed already."""
    if isinstance(states, PackedStates):
        return states
    layout = BufferLayout.of(states)
    packed = layout.states(torch.empty(layout.nbytes, dtype=torch.uint8, device=_flat(states)[0].device))
    packed.load(states)
    return packed


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy with one kernel per dtype instead of one kernel per tensor."""
    for dtype in {t.dtype for t in targets}:
        pairs = [(t, s) for t, s in zip(targets, sources, strict=True) if t.dtype == dtype]
        into, given = zip(*pairs, strict=True)
        torch._foreach_copy_(into, given)


def _flat(states: Sequence[State]) -> list[Tensor]:
    return [t for state in states for t in state]

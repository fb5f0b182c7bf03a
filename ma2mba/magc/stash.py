"""Where the recurrent states at chunk boundaries live between forward and backward."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ma2mba.magc.cell import State
from ma2mba.magc.plan import StashPlace


@dataclass
class HostMemory:
    """Pinned buffers that steps use again, and the stream that fills and reads them beside the computation."""

    free: list[list[Tensor]] = field(default_factory=list)
    stream: torch.cuda.Stream | None = None

    def take(self, like: Sequence[Tensor]) -> list[Tensor]:
        shapes = [(t.shape, t.dtype) for t in like]
        for i, buffers in enumerate(self.free):
            if [(b.shape, b.dtype) for b in buffers] == shapes:
                return self.free.pop(i)
        return [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in like]


class Stash:
    """Keeps states on their device, or those of a GPU in pinned host memory, with copies beside the computation."""

    def __init__(self, place: StashPlace, memory: HostMemory):
        self.place, self.memory = place, memory
        self._kept: list[list[State]] = []
        self._sizes: list[int] = []
        self._fetched: list[Tensor] | None = None

    def push(self, states: Sequence[State]) -> None:
        if self._on_host(states):
            self._sizes = [len(state) for state in states]
            states = [tuple(self._to_host([t for state in states for t in state]))]
        self._kept.append([tuple(t.detach() for t in state) for state in states])

    def pop(self) -> list[State]:
        """The states pushed last, on the device that they came from."""
        if not self._sizes:
            return self._kept.pop()
        tensors = self._fetched if self._fetched is not None else self._fetch()
        stream = torch.cuda.current_stream()
        stream.wait_stream(self._side())
        for tensor in tensors:
            tensor.record_stream(stream)
        self._fetched = self._fetch() if self._kept else None
        taken = iter(tensors)
        return [tuple(next(taken) for _ in range(size)) for size in self._sizes]

    def _on_host(self, states: Sequence[State]) -> bool:
        return self.place == "host" and any(t.is_cuda for state in states for t in state)

    def _side(self) -> torch.cuda.Stream:
        if self.memory.stream is None:
            self.memory.stream = torch.cuda.Stream()
        return self.memory.stream

    def _to_host(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        buffers, side = self.memory.take(tensors), self._side()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for buffer, tensor in zip(buffers, tensors, strict=True):
                buffer.copy_(tensor.detach(), non_blocking=True)
                tensor.record_stream(side)
        return buffers

    def _fetch(self) -> list[Tensor]:
        """Begin to copy the last boundary back. Its buffers are free at once: what fills them again queues behind."""
        (buffers,) = self._kept.pop()
        with torch.cuda.stream(self._side()):
            tensors = [b.to("cuda", non_blocking=True) for b in buffers]
        self.memory.free.append(list(buffers))
        return tensors

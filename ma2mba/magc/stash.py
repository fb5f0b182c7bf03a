"""Where recurrent states between chunks are stored between forward and backward: on the device or in host memory."""

import mmap
import weakref
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from ma2mba.magc.packing import BufferLayout, PackedStates, State, pack
from ma2mba.magc.plan import StashPlace


class HostMemory:
    """Pinned host buffers, reused from step to step, and the CUDA stream that copies to and from them.

    A buffer has exactly the requested size. PyTorch's own pinned memory rounds up to a power of two.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[Tensor]] = {}
        self._pinned: list[Tensor] = []
        self._stream: torch.cuda.Stream | None = None

    @property
    def stream(self) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        return self._stream

    def take(self, nbytes: int) -> Tensor:
        """Return a buffer of `nbytes` bytes. Raises MemoryError if the host cannot pin more memory."""
        free = self._free.get(nbytes)
        if free:
            return free.pop()
        if not self._pinned:
            weakref.finalize(self, _unpin, self._pinned).atexit = False
        buffer = _pin(nbytes)
        self._pinned.append(buffer)
        return buffer

    def give(self, buffer: Tensor) -> None:
        """Take a buffer back for reuse."""
        self._free.setdefault(len(buffer), []).append(buffer)


def _pin(nbytes: int) -> Tensor:
    memory = mmap.mmap(-1, nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    buffer = torch.frombuffer(memory, dtype=torch.uint8)
    error = torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), nbytes, 0)
    if int(error) != 0:
        raise MemoryError(
            f"cannot pin {nbytes:,} bytes of host memory ({error}); store fewer states (longer chunks or a larger "
            'stash_every), or store states on the device (stash="device")'
        )
    return buffer


def _unpin(buffers: list[Tensor]) -> None:
    torch.cuda.synchronize()
    for buffer in buffers:
        torch.cuda.cudart().cudaHostUnregister(buffer.data_ptr())


class Stash:
    """A stack of states. Stores them on their device, or moves states of a GPU to pinned host memory.

    Copies run on a stream of their own, in parallel to the computation. The GPU waits for a copy before it reuses the
    memory of that copy. So at most two boundaries are on their way to the host and one on its way back, however far the
    CPU runs ahead of the GPU.
    """

    def __init__(self, place: StashPlace, memory: HostMemory):
        self.place, self.memory = place, memory
        self._on_device: list[Sequence[State]] = []
        self._on_host: list[tuple[BufferLayout, Tensor]] = []
        self._leaving: deque[tuple[PackedStates, torch.cuda.Event]] = deque()
        self._fetched: PackedStates | None = None

    def push(self, states: Sequence[State]) -> None:
        if self.place == "host" and any(t.is_cuda for state in states for t in state):
            self._send(pack(states))
        else:
            self._on_device.append([tuple(t.detach() for t in state) for state in states])

    def pop(self) -> Sequence[State]:
        """Remove and return the newest states, on the device that they came from."""
        if self._on_device:
            return self._on_device.pop()
        self._free_sent(keep=0)
        states = self._fetched if self._fetched is not None else self._fetch()
        torch.cuda.current_stream().wait_stream(self.memory.stream)
        self._fetched = self._fetch() if self._on_host else None
        return states

    def drop(self) -> None:
        """Remove the newest states."""
        if self._on_device:
            self._on_device.pop()
        elif self._fetched is not None:
            self._fetched = None
        else:
            self.memory.give(self._on_host.pop()[1])

    def __del__(self) -> None:
        """Return the buffers of a forward that had no backward. torch.compile also makes objects without __init__."""
        for _, buffer in vars(self).get("_on_host", ()):
            self.memory.give(buffer)

    def _send(self, states: PackedStates) -> None:
        """Start to copy states to the host."""
        self._free_sent(keep=1)
        buffer, side = self.memory.take(states.layout.nbytes), self.memory.stream
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            buffer.copy_(states.buffer, non_blocking=True)
        self._leaving.append((states, side.record_event()))
        self._on_host.append((states.layout, buffer))

    def _free_sent(self, keep: int) -> None:
        """Free the device memory of all but the newest `keep` states on their way to the host, after their copies."""
        while len(self._leaving) > keep:
            _, copied = self._leaving.popleft()
            torch.cuda.current_stream().wait_event(copied)

    def _fetch(self) -> PackedStates:
        """Start to copy the newest states back. Their buffer is free at once: the next copy into it queues behind."""
        layout, buffer = self._on_host.pop()
        states = layout.states(torch.empty(layout.nbytes, dtype=torch.uint8, device="cuda"))
        side = self.memory.stream
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            states.buffer.copy_(buffer, non_blocking=True)
        self.memory.give(buffer)
        return states

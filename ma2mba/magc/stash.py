"""Where the recurrent states at chunk boundaries live between forward and backward."""

import mmap
import weakref
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from ma2mba.magc.packing import Layout, PackedStates, State, pack
from ma2mba.magc.plan import StashPlace


class HostMemory:
    """Pinned buffers that steps use again, and the stream that fills and reads them beside the computation.

    A buffer takes the bytes asked for and no more (PyTorch's own pinned memory rounds up to a power of two).
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
        """A buffer of so many bytes. Raises MemoryError where the host has no more to pin."""
        free = self._free.get(nbytes)
        if free:
            return free.pop()
        if not self._pinned:
            weakref.finalize(self, _unpin, self._pinned).atexit = False
        buffer = _pin(nbytes)
        self._pinned.append(buffer)
        return buffer

    def give(self, buffer: Tensor) -> None:
        self._free.setdefault(len(buffer), []).append(buffer)


def _pin(nbytes: int) -> Tensor:
    memory = mmap.mmap(-1, nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    buffer = torch.frombuffer(memory, dtype=torch.uint8)
    error = torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), nbytes, 0)
    if int(error) != 0:
        raise MemoryError(
            f"{nbytes:,} bytes of host memory cannot be pinned ({error}); keep fewer boundaries by longer chunks or a "
            'larger stash_every, or keep them on the device (stash "device")'
        )
    return buffer


def _unpin(buffers: list[Tensor]) -> None:
    torch.cuda.synchronize()
    for buffer in buffers:
        torch.cuda.cudart().cudaHostUnregister(buffer.data_ptr())


class Stash:
    """Keeps states on their device, or those of a GPU in pinned host memory, with copies beside the computation.

    The computation waits, on the device, for a copy before memory that it reads or fills is used again: at most two
    boundaries are on their way out and one on its way back, however far the host runs ahead of the device.
    """

    def __init__(self, place: StashPlace, memory: HostMemory):
        self.place, self.memory = place, memory
        self._kept: list[Sequence[State]] = []
        self._away: list[tuple[Layout, Tensor]] = []
        self._leaving: deque[tuple[PackedStates, torch.cuda.Event]] = deque()
        self._fetched: PackedStates | None = None

    def push(self, states: Sequence[State]) -> None:
        if self.place == "host" and any(t.is_cuda for state in states for t in state):
            self._send(pack(states))
        else:
            self._kept.append([tuple(t.detach() for t in state) for state in states])

    def pop(self) -> Sequence[State]:
        """The states pushed last, on the device that they came from."""
        if self._kept:
            return self._kept.pop()
        self._let_go(0)
        states = self._fetched if self._fetched is not None else self._fetch()
        torch.cuda.current_stream().wait_stream(self.memory.stream)
        self._fetched = self._fetch() if self._away else None
        return states

    def drop(self) -> None:
        """Forget the states pushed last."""
        if self._kept:
            self._kept.pop()
        elif self._fetched is not None:
            self._fetched = None
        else:
            self.memory.give(self._away.pop()[1])

    def __del__(self) -> None:
        """A forward whose backward never came gives its buffers back."""
        for _, buffer in self._away:
            self.memory.give(buffer)

    def _send(self, states: PackedStates) -> None:
        self._let_go(1)
        buffer, side = self.memory.take(states.layout.nbytes), self.memory.stream
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            buffer.copy_(states.buffer, non_blocking=True)
        self._leaving.append((states, side.record_event()))
        self._away.append((states.layout, buffer))

    def _let_go(self, most: int) -> None:
        """Free all but the newest `most` of the states that are being copied out, behind their copies."""
        while len(self._leaving) > most:
            _, copied = self._leaving.popleft()
            torch.cuda.current_stream().wait_event(copied)

    def _fetch(self) -> PackedStates:
        """Begin to copy the last boundary back. Its buffer is free at once: what fills it again queues behind."""
        layout, buffer = self._away.pop()
        states = layout.states(torch.empty(layout.nbytes, dtype=torch.uint8, device="cuda"))
        side = self.memory.stream
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            states.buffer.copy_(buffer, non_blocking=True)
        self.memory.give(buffer)
        return states

"""A copy of what a rank saves, in host memory: training goes on while the copy is written."""

import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ma2mba.magc.stash import HostMemory
from ma2mba.training.checkpoint.rng import RandomState
from ma2mba.training.checkpoint.zero_state import Fragment
from ma2mba.training.world import World

log = logging.getLogger(__name__)
BLOCK_BYTES = 64 << 20
"""Bytes of host memory that are taken at a time: pinning stops other threads that use the GPU."""
ALIGNMENT = 64


class SnapshotEngine(Protocol):
    """What a snapshot needs of an engine (`ma2mba.training.engine.Engine`)."""

    world: World
    zero_stage: int

    def optimizer_state(self) -> tuple[list[Fragment], int]: ...
    def weights(self) -> Iterator[tuple[str, Tensor]]: ...
    def weight_bytes(self) -> dict[str, int]: ...


@dataclass(frozen=True)
class Snapshot:
    """What a rank saves.

    fragments  its share of the optimizer's state
    steps      how many steps AdamW has taken
    random     its random number generators
    weights    the weights of the model by name; None on all ranks but rank 0
    """

    fragments: list[Fragment]
    steps: int
    random: RandomState
    weights: dict[str, Tensor] | None


class SnapshotMemory:
    """Host memory for a copy of tensors: pinned for tensors of a GPU. The same memory serves every save.

    A thread takes the memory, since a host gives 1 to 2 GB/s of it.
    """

    def __init__(self, sizes: Mapping[str, int], device: torch.device):
        self._device = device
        self._pinned = HostMemory() if device.type == "cuda" else None
        self._places: dict[str, Tensor] = {}
        self._refused, self._closed = False, threading.Event()
        self._thread = threading.Thread(target=self._take, args=(sizes,), name="ma2mba-snapshot", daemon=True)
        self._thread.start()

    def ready(self, *, wait: bool) -> bool:
        """Return True if all memory is there, False if the host refused it. Without `wait`, also False until then."""
        if wait:
            self._thread.join()
        return not (self._thread.is_alive() or self._refused or self._closed.is_set())

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """Begin to copy a tensor to the place of this name, and return the copy. `finish` ends all copies."""
        copied = self._places[name].view(tensor.dtype).view(tensor.shape)
        return copied.copy_(tensor.detach(), non_blocking=True)

    def finish(self) -> None:
        """Wait until all copies have ended."""
        if self._pinned:
            torch.cuda.current_stream(self._device).synchronize()

    def close(self) -> None:
        """Take no more memory."""
        self._closed.set()
        self._thread.join()

    def _take(self, sizes: Mapping[str, int]) -> None:
        try:
            if self._pinned:
                torch.cuda.set_device(self._device)
            for nbytes, places in plan_blocks(sizes):
                if self._closed.is_set():
                    return
                block = self._pinned.take(nbytes) if self._pinned else torch.zeros(nbytes, dtype=torch.uint8)
                self._places |= {name: block[start:stop] for name, (start, stop) in places.items()}
        except (MemoryError, RuntimeError) as error:
            self._places.clear()
            self._refused = True
            reason = str(error).split(";")[0]
            log.info("saves: training waits until they are on disk, because the host gives no memory (%s)", reason)


def plan_blocks(sizes: Mapping[str, int]) -> Iterator[tuple[int, dict[str, tuple[int, int]]]]:
    """Yield the bytes of each block, and where in it each tensor stands. A tensor lies within one block."""
    places: dict[str, tuple[int, int]] = {}
    end = 0
    for name, nbytes in sizes.items():
        places[name] = (end, end + nbytes)
        end += -(-nbytes // ALIGNMENT) * ALIGNMENT
        if end >= BLOCK_BYTES:
            yield end, places
            places, end = {}, 0
    if end:
        yield end, places


def sizes_of(engine: SnapshotEngine) -> dict[str, int]:
    """Return the bytes of each tensor of this rank's snapshot, by name."""
    fragments, _ = engine.optimizer_state()
    sizes = {f"{key}/{f.name}": t.nbytes for f in fragments for key, t in f.tensors.items()}
    leads = engine.world.rank == 0
    return sizes | ({f"model/{name}": size for name, size in engine.weight_bytes().items()} if leads else {})


def take_snapshot(engine: SnapshotEngine, memory: SnapshotMemory | None) -> Snapshot:
    """Return what this rank saves, copied to `memory`. All ranks call it.

    Without memory, return the tensors themselves, which the next step changes.
    """
    fragments, steps = engine.optimizer_state()
    if memory:
        fragments = [
            Fragment(f.name, f.start, {key: memory.copy(f"{key}/{f.name}", t) for key, t in f.tensors.items()})
            for f in fragments
        ]
    weights = {}
    for name, tensor in engine.weights():
        if engine.world.rank == 0:
            weights[name] = memory.copy(f"model/{name}", tensor) if memory else tensor
            if engine.zero_stage == 3:  # which frees a weight when it gathers the next one
                weights[name] = _kept(weights[name], memory)
    if memory:
        memory.finish()
    random = RandomState.capture(engine.world.device)
    return Snapshot(fragments, steps, random, weights if engine.world.rank == 0 else None)


def _kept(tensor: Tensor, memory: SnapshotMemory | None) -> Tensor:
    """Return a tensor of the host whose content is there."""
    if memory is None:
        return tensor.to("cpu", copy=True)
    memory.finish()
    return tensor

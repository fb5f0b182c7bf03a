"""Keeps the states after videos: on the GPU, in host memory and on disk, those used last.

A state is written to disk as soon as it is there, so a server that is killed finds it again. The thread of the engine
never waits for the disk: other threads copy, write and load.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ma2mba.errors import UserError
from ma2mba.inference.fingerprint import dtype_name, fingerprint
from ma2mba.inference.session import Session, blank_states
from ma2mba.inference.state_file import Facts, Watched, load_state, save_state, state_bytes
from ma2mba.model.layer import State
from ma2mba.serving.prompt import Prefix
from ma2mba.serving.state_folder import StateFolder

log = logging.getLogger(__name__)
MOST_WRITES = 16
"""States that wait to be written to disk. Beyond, a state is not written: the disk is slower than the reading."""


@dataclass
class Kept:
    """A state that is kept in memory. `watched`: what is known of each of its media.

    device, host     its tensors; None where it is not
    saving, spilling True while a thread copies them
    """

    prefix: Prefix
    watched: tuple[Watched, ...]
    bytes: int
    device: list[State] | None = None
    host: list[State] | None = None
    saving: bool = False
    spilling: bool = False
    forgotten: bool = False


@dataclass
class Budgets:
    """Bytes of states on the model's device, in host memory (0 if that is the device) and on disk."""

    device: int
    host: int
    disk: int


@dataclass
class _Counts:
    found: int = 0
    loaded: int = 0
    spilled: int = 0
    returned: int = 0


class States:
    """The states of a model after the ends of media, by prefix."""

    def __init__(self, like: Session, folder: StateFolder | None, budgets: Budgets):
        """`like`: a session of the model. Without a folder, nothing is kept on disk."""
        self._like, self._folder, self._budgets = like, folder, budgets
        self._fingerprint, (self._blank, _) = fingerprint(like.model), blank_states(like.model)
        self._side = torch.cuda.Stream(like.device) if like.device.type == "cuda" else None
        self._bytes = state_bytes(like.model)
        self._lock = threading.RLock()
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._writes, self._loads = ThreadPoolExecutor(1, "states-write"), ThreadPoolExecutor(1, "states-load")
        self._waiting = 0
        self._counts = _Counts()

    def known(self, prefix: Prefix) -> tuple[Watched, ...] | None:
        """Return what is known of the media of a state in memory; None if it is not in memory."""
        with self._lock:
            kept = self._kept.get(prefix.key)
            return kept.watched if kept else None

    def find(self, prefix: Prefix) -> list[State] | None:
        """Return a state in memory, on the model's device; None if it is not in memory. Do not change it."""
        with self._lock:
            kept = self._kept.get(prefix.key)
            if kept is None:
                return None
            self._kept.move_to_end(prefix.key)
            self._counts.found += 1
            if kept.device is None:
                assert kept.host is not None
                kept.device = _copy(kept.host, self._like.device)
                self._counts.returned += 1
                self._shrink()
            states = kept.device
        if self._side and states:
            current = torch.cuda.current_stream(self._like.device)
            for tensor in (tensor for state in states for tensor in state):
                tensor.record_stream(current)  # another stream may have made it
        return states

    def load(self, prefix: Prefix, done: Callable[[], None]) -> bool:
        """Start to load a state from disk. Call `done` in another thread afterwards, whether or not it succeeded.

        Return False if the state is not on disk.
        """
        if not self._folder or not self._folder.holds(self._fingerprint, prefix):
            return False
        self._loads.submit(self._load, prefix, done)
        return True

    def keep(self, prefix: Prefix, states: list[State], watched: tuple[Watched, ...]) -> None:
        """Keep the state after a prefix, and write it to disk."""
        own: list[State] = [tuple(map(_own, *pair)) for pair in zip(states, self._blank, strict=True)]
        kept = Kept(prefix, watched, self._bytes, device=own)
        with self._lock:
            self._kept[prefix.key] = kept
            self._kept.move_to_end(prefix.key)
            if self._folder and self._waiting < MOST_WRITES:
                self._waiting += 1
                kept.saving = True
                self._writes.submit(self._guarded, self._save, kept, self._event())
            self._shrink()

    def forget(self, content: str) -> None:
        """Delete all states that a medium is part of."""
        with self._lock:
            for key, kept in list(self._kept.items()):
                if content in kept.prefix.contents:
                    kept.forgotten = True
                    del self._kept[key]
        if self._folder:
            self._folder.forget(content)

    def close(self) -> None:
        """Write what waits, and end the threads."""
        self._loads.shutdown(cancel_futures=True)
        self._writes.shutdown()

    def status(self) -> dict[str, float]:
        with self._lock:
            kept, counts = self._kept.values(), self._counts
            device = sum(one.device is not None for one in kept)
            host = sum(one.host is not None for one in kept)
            numbers: dict[str, float] = {
                "states_device": device,
                "states_device_bytes": device * self._bytes,
                "states_host": host,
                "states_host_bytes": host * self._bytes,
                "states_found_total": counts.found,
                "states_loaded_total": counts.loaded,
                "states_spilled_total": counts.spilled,
                "states_returned_total": counts.returned,
                "states_writes_waiting": self._waiting,
            }
        files, size = self._folder.size() if self._folder else (0, 0)
        return numbers | {"states_disk": files, "states_disk_bytes": size}

    def _event(self) -> Any:
        return torch.cuda.current_stream(self._like.device).record_event() if self._side else None

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        """Run work in a thread: a failure costs a state, not the server."""
        try:
            work(*arguments)
        except Exception:
            log.exception("a state is not kept")

    def _save(self, kept: Kept, event: Any) -> None:
        """Copy a state to host memory, and write it to disk."""
        folder, device = self._folder, kept.device
        assert folder
        assert device
        try:
            host = self._to_host(device, event)
            with self._lock:
                kept.host = host if self._budgets.host else None
            session = self._like.fork()
            session.jump(host)
            facts = Facts(
                fingerprint=self._fingerprint,
                dtype=dtype_name(self._like.model),
                chunk_tokens=self._like.chunk_tokens,
                turn_open=True,
                watched=kept.watched,
            )
            if not kept.forgotten and folder.make_room(self._bytes, self._budgets.disk):
                path = folder.path(self._fingerprint, kept.prefix)
                save_state(path, session, facts)
                if kept.forgotten:
                    path.unlink(missing_ok=True)
        except (OSError, UserError) as error:
            log.warning("a state is not kept on disk: %s", error)
        finally:
            with self._lock:
                kept.saving = False
                self._waiting -= 1
                self._shrink()

    def _spill(self, kept: Kept, event: Any) -> None:
        """Move a state from the GPU to host memory."""
        try:
            if kept.device and kept.host is None:
                kept.host = self._to_host(kept.device, event)
                self._counts.spilled += 1
        finally:
            with self._lock:
                kept.device, kept.spilling = None, False
                self._shrink()

    def _load(self, prefix: Prefix, done: Callable[[], None]) -> None:
        assert self._folder
        path = self._folder.path(self._fingerprint, prefix)
        try:
            with torch.cuda.stream(self._side) if self._side else nullcontext():
                session, facts = load_state(path, self._like.model, self._like.tokenizer, self._fingerprint)
            if self._side:
                self._side.synchronize()
            self._folder.used(path)
            with self._lock:
                kept = Kept(prefix, facts.watched, self._bytes, device=session.require_states())
                self._kept[prefix.key] = kept
                self._counts.loaded += 1
                self._shrink()
        except (UserError, OSError) as error:
            log.warning("a state is read again: %s", error)
            path.unlink(missing_ok=True)
        except Exception:
            log.exception("a state cannot be loaded")
            path.unlink(missing_ok=True)
        finally:
            done()

    def _to_host(self, states: list[State], event: Any) -> list[State]:
        if not self._side:
            return states
        with torch.cuda.stream(self._side):
            self._side.wait_event(event)
            return _copy(states, torch.device("cpu"))

    def _shrink(self) -> None:
        """Let the states used least recently leave the GPU, then host memory, until the budgets are kept."""
        for kept in self._beyond(self._budgets.device, lambda kept: 0 if kept.spilling else bool(kept.device)):
            if kept.saving:
                continue  # comes back here when it is written
            if kept.host is not None or not self._budgets.host:
                kept.device = None
            else:
                kept.spilling = True
                self._writes.submit(self._guarded, self._spill, kept, self._event())
        for kept in self._beyond(self._budgets.host, lambda kept: kept.host is not None):
            kept.host = None
        for key, kept in list(self._kept.items()):
            if kept.device is None and kept.host is None:
                del self._kept[key]

    def _beyond(self, budget: int, holds: Callable[[Kept], int | bool]) -> list[Kept]:
        """Return the least recently used states that must leave a tier."""
        there = [kept for kept in self._kept.values() if holds(kept)]
        count = max(0, -(-(sum(kept.bytes for kept in there) - budget) // self._bytes))
        return there[:count]


def _copy(states: Sequence[State], device: torch.device) -> list[State]:
    return [tuple(tensor.to(device) for tensor in state) for state in states]


def _own(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the tensor; a copy with the layout of `like` if it is a view that keeps a larger tensor alive."""
    if tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like).copy_(tensor)

"""Open a safetensors file, and copy its tensors to where they belong in one pass that also verifies its checksum."""

import hashlib
import math
import os
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ma2mba.errors import UserError
from ma2mba.files import open_regular, sha256_file
from ma2mba.text import parse_json, shorten

HEADER_BYTES = 8 << 20
"""Bytes of the largest accepted header: about 70,000 tensors."""
BLOCK_BYTES = 4 << 20
"""Bytes that are read, hashed and copied at a time."""
BUFFERS = 3
"""Buffers for tensors that are converted or copied to a GPU: one is read, one is hashed, one is copied."""
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Stored types that a parameter of any floating type may be loaded from."""
INTEGERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
BOOLEANS = {"BOOL": torch.uint8}
"""Read as bytes: in a file, a boolean may be any byte."""
DTYPES = FLOATS | INTEGERS | BOOLEANS


def reason_of(error: object) -> str:
    """Return the text of a library's error on one line, shortened."""
    return shorten(" ".join(str(error).split()), 300)


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: bytes `start` to `stop`."""

    file: "TensorFile"
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def read(self) -> Tensor:
        return self.file.handle.get_tensor(self.name)

    def fits(self, wanted: Tensor) -> bool:
        """Return True if `wanted` has the same shape, and is of floating point exactly if this tensor is."""
        same_kind = self.dtype in DTYPES and (self.dtype in FLOATS) == wanted.is_floating_point()
        return same_kind and self.shape == tuple(wanted.shape)


@dataclass(frozen=True, eq=False)
class TensorFile:
    """An open safetensors file. Takes no memory for its tensors.

    handle  the library's own reader, which has validated the header
    about   device, inode, size and time of change when it was opened
    sha256  the checksum that its bytes must have; "" if none is known
    """

    path: Path
    handle: Any
    about: tuple[int, ...]
    header: dict[str, Any]
    begin: int
    sha256: str = ""

    @staticmethod
    def open(path: Path, sha256: str = "") -> "TensorFile":
        """Open a file. Raise UserError unless it is a regular file with a sound header that describes all its bytes."""
        with open_regular(path) as file:
            about = _about(os.fstat(file.fileno()))
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if length > HEADER_BYTES:
                raise UserError(
                    f"{path}: not safetensors, or damaged (a header of {length:,} bytes; at most {HEADER_BYTES:,} are "
                    "read). Get the file again"
                )
            content = file.read(length)
        try:
            handle = safe_open(path, framework="pt")
            if _about(os.stat(path)) != about:
                raise UserError(f"{path}: was replaced while it was opened. Start again")
            return TensorFile(path, handle, about, parse_json(content), 8 + length, sha256)
        except RuntimeError as error:
            raise UserError(f"{path}: cannot be opened ({reason_of(error)}). Use a machine with more memory") from error
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(f"{path}: not safetensors, or damaged ({reason_of(error)}). Get the file again") from error

    @property
    def tensors(self) -> dict[str, Stored]:
        """The tensors by name."""
        stored = {}
        for name, about in self.header.items():
            if name != "__metadata__":
                start, stop = about["data_offsets"]
                shape = tuple(about["shape"])
                stored[name] = Stored(self, name, about["dtype"], shape, self.begin + start, self.begin + stop)
        return stored

    def copy_tensors(self, targets: Mapping[str, Tensor]) -> None:
        """Copy tensors to `targets`, on any device and in any dtype, in one pass over the file.

        If the checksum is known, every byte of the file is read and hashed, in a second thread. The bytes that are
        hashed are the bytes that are copied. Raise UserError if the checksum differs or the file has changed since it
        was opened: `targets` must not be used then.
        """
        tensors = self.tensors
        with open_regular(self.path) as file, _hashing(bool(self.sha256)) as digest:
            self._require_unchanged(file)
            reader = _Reader(self.path, file, digest, pinned=any(t.is_cuda for t in targets.values()))
            for stored in sorted((tensors[name] for name in targets), key=lambda stored: (stored.start, stored.stop)):
                reader.skip_to(stored.start)
                reader.copy(stored, targets[stored.name])
            reader.skip_to(self.about[2])
            reader.wait()
            if digest and digest.hexdigest() != self.sha256:
                raise damaged(self.path)
            self._require_unchanged(file)

    def verify(self) -> None:
        """Read the whole file. Raise UserError if its checksum is known and differs."""
        if self.sha256 and sha256_file(self.path) != self.sha256:
            raise damaged(self.path)

    def require_unchanged(self) -> None:
        """Raise UserError if the file has changed since it was opened."""
        with open_regular(self.path) as file:
            self._require_unchanged(file)

    def _require_unchanged(self, file: BinaryIO) -> None:
        if _about(os.fstat(file.fileno())) != self.about:
            raise UserError(f"{self.path}: has changed while it was read. Start again")


def damaged(path: Path) -> UserError:
    return UserError(f"{path}: is damaged (its checksum differs from checksums.json). Export the model again")


def _about(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class _Digest:
    """SHA-256 of blocks, computed in a second thread in the order of `update`."""

    def __init__(self, thread: ThreadPoolExecutor):
        self._sha256, self._thread = hashlib.sha256(), thread

    def update(self, block: memoryview) -> Future:
        return self._thread.submit(self._sha256.update, block)

    def hexdigest(self) -> str:
        return self._thread.submit(self._sha256.hexdigest).result()


@contextmanager
def _hashing(wanted: bool) -> Iterator[_Digest | None]:
    thread = ThreadPoolExecutor(1)
    try:
        yield _Digest(thread) if wanted else None
    finally:
        thread.shutdown(cancel_futures=True)


class _Buffer:
    """Bytes to read into. They may be overwritten when they are hashed, and copied to the device."""

    def __init__(self, pinned: bool):
        self.bytes = torch.empty(BLOCK_BYTES, dtype=torch.uint8, pin_memory=pinned)
        self.hashed: Future | None = None
        self.copied: torch.cuda.Event | None = None

    def wait(self) -> None:
        if self.hashed:
            self.hashed.result()
        if self.copied:
            self.copied.synchronize()
        self.hashed = self.copied = None


class _Reader:
    """Read a file from its start to its end: into tensors, or past bytes that no tensor needs."""

    def __init__(self, path: Path, file: BinaryIO, digest: _Digest | None, pinned: bool):
        self.path, self.file, self.digest, self.pinned, self.at = path, file, digest, pinned, 0
        self._buffers: list[_Buffer] = []

    def skip_to(self, place: int) -> None:
        """Go on to `place`. Read the bytes before it only if they are hashed."""
        if place < self.at:
            raise UserError(f"{self.path}: not safetensors, or damaged (two tensors overlap). Get the file again")
        if not self.digest:
            self.file.seek(place)
            self.at = place
        while self.at < place:
            buffer = self._free_buffer()
            buffer.hashed = self._read(buffer.bytes[: min(BLOCK_BYTES, place - self.at)])

    def copy(self, stored: Stored, target: Tensor) -> None:
        """Read the bytes of a tensor into `target`."""
        dtype = DTYPES[stored.dtype]
        if stored.stop - stored.start != math.prod(stored.shape) * dtype.itemsize:
            raise UserError(f"{self.path}: not safetensors, or damaged (the size of {stored.name}). Get the file again")
        if target.device.type == "cpu" and target.dtype == dtype and target.is_contiguous():
            for block in target.detach().view(-1).view(torch.uint8).split(BLOCK_BYTES):
                self._read(block)
        elif target.is_contiguous():
            self._convert(target.detach().view(-1), dtype)
        else:
            values = torch.empty(target.shape, dtype=target.dtype, device=target.device)
            self._convert(values.view(-1), dtype)
            target.detach().copy_(values)

    def _convert(self, flat: Tensor, dtype: torch.dtype) -> None:
        """Read values of `dtype` through a buffer into a tensor on any device."""
        for piece in flat.split(BLOCK_BYTES // dtype.itemsize):
            buffer = self._free_buffer()
            block = buffer.bytes[: len(piece) * dtype.itemsize]
            buffer.hashed = self._read(block)
            piece.copy_(block.view(dtype), non_blocking=flat.is_cuda)
            if flat.is_cuda:
                buffer.copied = torch.cuda.current_stream(flat.device).record_event()

    def wait(self) -> None:
        """Wait until every copy has arrived."""
        for buffer in self._buffers:
            buffer.wait()

    def _free_buffer(self) -> _Buffer:
        if len(self._buffers) < BUFFERS:
            self._buffers.append(_Buffer(self.pinned))
        else:
            self._buffers.append(self._buffers.pop(0))
        self._buffers[-1].wait()
        return self._buffers[-1]

    def _read(self, block: Tensor) -> Future | None:
        """Fill `block` with the next bytes. Return when they are hashed."""
        into = block.numpy().data
        if self.file.readinto(into) != len(into):  # type: ignore[attr-defined]
            raise UserError(f"{self.path}: has become shorter while it was read. Start again")
        self.at += len(into)
        return self.digest.update(into) if self.digest else None

"""Write safetensors files tensor by tensor, in shards of a bounded size. At most one tensor is copied at a time.

The bytes are those that the library's `save_file` writes, which copies all tensors first.
"""

import hashlib
import json
import math
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ma2mba.errors import UserError
from ma2mba.model.tensor_file import BLOCK_BYTES, DTYPES
from ma2mba.model.weights import INDEX, WEIGHTS

SHARD_BYTES = 5_000_000_000
"""Bytes of tensors in a file: a larger model is split."""
BEHIND = 4
"""Blocks by which hashing may lag behind writing."""
ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
"""In a file, tensors stand in the order of these types: each begins at a multiple of its element's size."""


@dataclass(frozen=True)
class TensorSpec:
    """The type, as safetensors names it, and the shape of a tensor to write."""

    dtype: str
    shape: tuple[int, ...]

    @staticmethod
    def of(name: str, tensor: Tensor) -> "TensorSpec":
        """Return the spec of a tensor. Raise UserError for a dtype that a model folder cannot hold."""
        names = {torch.bool: "BOOL"} | {dtype: key for key, dtype in DTYPES.items() if key != "BOOL"}
        if tensor.dtype not in names:
            raise UserError(
                f"{name}: a tensor of {tensor.dtype}, which a model folder cannot hold. Use {', '.join(ORDER)}"
            )
        return TensorSpec(names[tensor.dtype], tuple(tensor.shape))

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class Digest(Protocol):
    """A checksum that is computed block by block, as hashlib and xxhash do."""

    def update(self, block: Any, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True)
class Shard:
    """A file to write: its name, its tensors in the order in which they stand in it, and its metadata.

    With several keys of metadata, the library writes an order that differs between processes. We use one key.
    """

    name: str
    tensors: Mapping[str, TensorSpec]
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})

    @property
    def header(self) -> bytes:
        """The bytes before the first tensor."""
        content: dict[str, object] = {"__metadata__": dict(self.metadata)}
        end = 0
        for name, spec in self.tensors.items():
            start, end = end, end + spec.bytes
            content[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [start, end]}
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return len(self.header) + sum(spec.bytes for spec in self.tensors.values())


def plan_shards(specs: Mapping[str, TensorSpec], most: int | None = None) -> list[Shard]:
    """Return the files that hold tensors: one, or several of at most `most` bytes of tensors (SHARD_BYTES).

    A tensor that is larger has a file of its own.
    """
    most = SHARD_BYTES if most is None else most
    groups: list[dict[str, TensorSpec]] = [{}]
    size = 0
    for name, spec in specs.items():
        if groups[-1] and size + spec.bytes > most:
            groups.append({})
            size = 0
        groups[-1][name] = spec
        size += spec.bytes
    names = [WEIGHTS] if len(groups) == 1 else [shard_name(i, len(groups)) for i in range(1, len(groups) + 1)]
    return [Shard(name, in_order(group)) for name, group in zip(names, groups, strict=True)]


def shard_name(number: int, of: int) -> str:
    return f"model-{number:05d}-of-{of:05d}.safetensors"


def index_text(shards: list[Shard]) -> str:
    """Return the content of model.safetensors.index.json."""
    specs = [spec for shard in shards for spec in shard.tensors.values()]
    about = {
        "total_parameters": sum(math.prod(spec.shape) for spec in specs),
        "total_size": sum(spec.bytes for spec in specs),
    }
    places = {name: shard.name for shard in shards for name in shard.tensors}
    return json.dumps({"metadata": about, "weight_map": dict(sorted(places.items()))}, indent=2) + "\n"


def write_shards(
    shards: list[Shard], read: Callable[[str], Tensor], folder: Path, more: Mapping[str, Digest] | None = None
) -> dict[str, str]:
    """Write the files, and an index if they are several. Return the SHA-256 of each file.

    `read(name)` returns a tensor, on any device. Raise UserError if it has another type or shape than planned.
    `more` has another checksum to compute for the file of each shard, by its name.
    """
    sums = {}
    for shard in shards:
        digest = hashlib.sha256()
        write_shard(shard, read, folder / shard.name, [digest, *([more[shard.name]] if more else [])])
        sums[shard.name] = digest.hexdigest()
    if len(shards) > 1:
        content = index_text(shards).encode()
        (folder / INDEX).write_bytes(content)
        sums[INDEX] = hashlib.sha256(content).hexdigest()
    return sums


def in_order(group: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Return tensors in the order in which they stand in a file."""
    return dict(sorted(group.items(), key=lambda item: (ORDER.index(item[1].dtype), item[0])))


def write_shard(shard: Shard, read: Callable[[str], Tensor], path: Path, digests: Sequence[Digest]) -> None:
    """Write a file and compute its checksums. A second thread hashes what the first one writes.

    `read` and its errors are those of `write_shards`.
    """
    hashed = deque[Future]()

    def update(block: memoryview) -> None:
        for digest in digests:
            digest.update(block)

    with open(path, "wb", buffering=0) as file, ThreadPoolExecutor(1) as thread:

        def put(block: memoryview) -> None:
            hashed.append(thread.submit(update, block))
            while block:
                block = block[file.write(block) :]
            if len(hashed) > BEHIND:
                hashed.popleft().result()

        put(memoryview(shard.header))
        for name, spec in shard.tensors.items():
            for block in _bytes(name, read(name), spec).split(BLOCK_BYTES):
                put(block.numpy().data)
        while hashed:
            hashed.popleft().result()


def _bytes(name: str, tensor: Tensor, spec: TensorSpec) -> Tensor:
    """Return the bytes of a tensor, on the CPU."""
    if TensorSpec.of(name, tensor) != spec:
        raise UserError(f"{name}: has changed while it was written. Start again")
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)

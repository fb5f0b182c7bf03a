"""Read a pickled checkpoint: the program of the child process that `pickled.py` starts and watches.

Its arguments are CHECKPOINT TARGET EXTRA_BYTES. It writes the tensors of CHECKPOINT to TARGET, as safetensors. If a
tensor has several names, it is written under the first; the metadata "same" maps the other names to the first. It
prints "started", and then "ok" or why the checkpoint is refused, in one line.
"""

import json
import math
import os
import pickle
import re
import resource
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ma2mba.memory import held_bytes

MOST_TENSORS = 65_536
PICKLE_BYTES = 16 << 20
"""Bytes of the largest accepted pickle within a checkpoint: names and shapes, without the tensors."""
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
REASON_LETTERS = 300
ZIP, LFS = b"PK\3\4", b"version https://git-lfs"
"""How the files begin that torch.save writes, and what Git leaves in place of a large file."""
BLOCK_BYTES = 4 << 20


class Refused(Exception):
    """A checkpoint that is not converted. The text says why."""


def main() -> None:
    path, target, extra = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    size = path.stat().st_size
    _limit(size, extra)
    print("started", flush=True)
    try:
        convert(path, target, size)
        answer = "ok"
    except Refused as error:
        answer = str(error)
    except MemoryError:
        answer = "it needs more memory than its size"
    except Exception as error:  # whatever the bytes make zipfile, torch or safetensors raise
        answer = _reason(error)
    print(" ".join(answer.split())[:REASON_LETTERS], flush=True)
    os._exit(0)  # nested objects are not freed one in another


def _limit(size: int, extra: int) -> None:
    """Limit memory, the size of written files, and core dumps.

    The checkpoint is mapped or read, and its tensors may be copied once.
    """
    for limit, most in (
        (resource.RLIMIT_DATA, held_bytes() + 2 * size + extra),
        (resource.RLIMIT_FSIZE, size + extra),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def convert(path: Path, target: Path, size: int) -> None:
    """Write the tensors of a checkpoint. Raise Refused, or whatever a library raises."""
    head = _head(path)
    if head.startswith(LFS):
        raise Refused("it is a pointer of Git LFS. Run `git lfs pull` in its folder")
    zipped = head.startswith(ZIP)
    if zipped:
        _check_zip(path, size)
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    if not isinstance(content, Mapping):
        raise Refused(f"it holds {type(content).__name__} instead of tensors by name")
    if len(content) > MOST_TENSORS:
        raise Refused(f"it holds {len(content):,} entries, and at most {MOST_TENSORS:,} are read")
    written: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    places: dict[Any, str] = {}
    total = 0
    for name, value in content.items():
        tensor = _checked(name, value)
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.dtype, tensor.shape)
        if tensor.numel() and (place, tensor.stride()) in places:
            same[name] = places[place, tensor.stride()]
            continue
        total += math.prod(tensor.shape) * tensor.dtype.itemsize
        if total > size:
            raise Refused("its tensors are larger than the file")
        places[place, tensor.stride()] = name
        written[name] = tensor
    whole = {name: tensor.detach().contiguous() for name, tensor in written.items()}
    save_file(_apart(whole), target, metadata={"format": "pt", "same": json.dumps(same)})


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(100)


def _check_zip(path: Path, size: int) -> None:
    """Raise Refused for a zip file that torch.save does not write: compressed, overlapping or too many entries.

    Raise BadZipFile if the bytes of an entry differ from its checksum, which torch does not compare.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        _check_entries(entries, size)
        for entry in entries:
            with archive.open(entry) as file:
                while file.read(BLOCK_BYTES):
                    pass


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    if len(entries) > 2 * MOST_TENSORS:
        raise Refused(f"it has {len(entries):,} entries, and at most {2 * MOST_TENSORS:,} are read")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise Refused(f"its entry {entry.filename!r:.80} is compressed, which torch.save never writes")
        if entry.filename.endswith(".pkl") and entry.file_size > PICKLE_BYTES:
            raise Refused(f"its pickle has {entry.file_size:,} bytes, and at most {PICKLE_BYTES:,} are read")
    if sum(entry.file_size for entry in entries) > size:
        raise Refused("its entries overlap")


def _checked(name: Any, value: Any) -> Tensor:
    """Return an entry as a tensor. Raise Refused unless it is a plain tensor in memory with a usable name."""
    if not isinstance(name, str) or not 0 < len(name) <= 500 or not name.isprintable():
        raise Refused("a name in it is not a plain text")
    if not isinstance(value, Tensor):
        raise Refused(f"{name} is {type(value).__name__} instead of a tensor")
    plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    if not plain or value.dtype not in (*DTYPES, *INTEGERS) or value.is_conj() or value.is_neg():
        raise Refused(f"{name} is not a dense tensor of numbers, but {value.dtype}, {value.layout}, {value.device}")
    return value


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy the tensors that overlap others in memory: the format stores each by itself."""
    ends: list[tuple[int, int, str]] = sorted((t.data_ptr(), t.data_ptr() + t.nbytes, n) for n, t in tensors.items())
    last, shared = 0, set()
    for start, end, name in ends:
        if start < last:
            shared.add(name)
        last = max(last, end)
    return {name: t.clone() if name in shared else t for name, t in tensors.items()}


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        asked = re.search(r"(?:WeightsUnpickler error:|Trying to load)\s*(.*)", text)
        found = asked[1].split(" was not an allowed")[0] if asked else text
        return f"its pickle is damaged, or holds more than tensors: {found}"
    if isinstance(error, zipfile.BadZipFile | EOFError | struct.error):
        return f"it is cut off or damaged: {text or type(error).__name__}"
    return text or type(error).__name__

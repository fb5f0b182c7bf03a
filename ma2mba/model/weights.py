"""Read safetensors files that somebody else wrote: sizes are compared before memory is taken, values must be finite."""

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ma2mba.errors import UserError
from ma2mba.files import open_regular
from ma2mba.memory import machine_bytes
from ma2mba.text import read_json, shorten

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEADER_BYTES = 8 << 20
"""Bytes of the largest accepted header: about 70,000 tensors."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Stored types that a parameter of any floating type may be loaded from."""


def open_tensors(path: Path) -> Any:
    """Return an open safetensors file. Takes no memory for its tensors.

    Raise UserError unless it is a regular file whose header is small, valid, and describes every byte after it.
    """
    with open_regular(path) as file:
        head = file.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if length > HEADER_BYTES:
        raise UserError(
            f"{path}: not safetensors, or damaged (a header of {length:,} bytes; at most {HEADER_BYTES:,} are read). "
            "Get the file again"
        )
    try:
        return safe_open(path, framework="pt")
    except RuntimeError as error:
        raise UserError(f"{path}: cannot be opened ({reason_of(error)}). Use a machine with more memory") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path}: not safetensors, or damaged ({reason_of(error)}). Get the file again") from error


def reason_of(error: object) -> str:
    """Return the text of a library's error on one line, shortened."""
    return shorten(" ".join(str(error).split()), 300)


@dataclass(frozen=True)
class Stored:
    """A tensor in an open file."""

    file: Any
    name: str
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        return self.file.get_tensor(self.name)

    def fits(self, wanted: Tensor) -> bool:
        """Return True if `wanted` has the same shape, and is of floating point exactly if this tensor is."""
        return self.shape == tuple(wanted.shape) and (self.dtype in FLOATS) == wanted.is_floating_point()


class Weights:
    """The tensors of one or several safetensors files, by name. `path` names them in messages."""

    def __init__(self, path: Path, tensors: Mapping[str, Stored]):
        self.path, self.tensors = path, dict(tensors)

    @staticmethod
    def open(path: Path) -> "Weights":
        """Open one file. Raise UserError if it is not sound."""
        file = open_tensors(path)
        pieces = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (a safe_open is not a mapping)
        stored = {n: Stored(file, n, piece.get_dtype(), tuple(piece.get_shape())) for n, piece in pieces.items()}
        return Weights(path, stored)

    def renamed(self, new_name: Callable[[str], str]) -> "Weights":
        return Weights(self.path, {new_name(name): stored for name, stored in self.tensors.items()})

    def require(self, module: nn.Module, tied: str = "", *, extra: bool = False) -> None:
        """Raise UserError that names tensors unless these are the tensors of `module`, without `tied`.

        The module may be on the meta device. With `extra` there may be other tensors besides.
        """
        wanted = {name: t for name, t in module.state_dict().items() if name != tied}
        found = {name: t for name, t in self.tensors.items() if name != tied and (name in wanted or not extra)}
        differ = [
            name
            for name in sorted(wanted.keys() | found.keys())
            if name not in wanted or name not in found or not found[name].fits(wanted[name])
        ]
        if differ:
            shown = "; ".join(
                f"{name} is {_kind(found.get(name), 'absent')}, not {_kind(wanted.get(name), 'known')}"
                for name in differ[:3]
            )
            raise UserError(
                f"{self.path}: has another architecture than the model: {len(differ)} tensors differ, first "
                f"{reason_of(shown)}. Change the model's configuration, or use weights of this architecture"
            )

    def require_memory(self) -> None:
        """Raise UserError if the tensors in fp32 exceed the memory of this machine: a file with holes may claim any."""
        needed = 4 * sum(math.prod(stored.shape) for stored in self.tensors.values())
        memory = machine_bytes()
        if needed > memory:
            raise UserError(
                f"{self.path}: needs {needed / 1e9:,.1f} GB of memory in fp32, but this machine has "
                f"{memory / 1e9:,.1f} GB. Use a machine with more memory"
            )

    @torch.no_grad()
    def copy_into(self, module: nn.Module, tied: str = "", *, finite: bool = True) -> None:
        """Copy the tensors into a module that `require` accepts, one after the other.

        Raise UserError for a tensor with NaN or infinite values, unless `finite` is False.
        """
        for name, target in module.state_dict().items():
            if name != tied:
                values = self._read(name)
                if finite:
                    self._require_finite(name, values)
                target.copy_(values)

    def require_finite(self) -> None:
        """Raise UserError that names the first tensor with NaN or infinite values. Reads all tensors."""
        for name in self.tensors:
            self._require_finite(name, self._read(name))

    def _read(self, name: str) -> Tensor:
        try:
            return self.tensors[name].read()
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.path}: {name} cannot be read ({reason_of(error)}). Get the file again") from error

    def _require_finite(self, name: str, values: Tensor) -> None:
        if not is_finite(values):
            raise UserError(
                f"{self.path}: the tensor {name} has NaN or infinite values. Use the weights of an earlier checkpoint, "
                "or get the file again"
            )


def is_finite(values: Tensor) -> bool:
    """Return False if a tensor has NaN or infinite values.

    The smallest and the largest value say so without a second tensor, 20 times faster than `isfinite().all()`.
    """
    if not values.is_floating_point() or not values.numel():
        return True
    return all(bool(edge.isfinite()) for edge in torch.aminmax(values))


def open_weights(file_in: Callable[[str], Path]) -> Weights:
    """Open the weights of a folder: model.safetensors, or the files that model.safetensors.index.json lists.

    `file_in(name)` returns the path of a file of the folder. Raise UserError if there are none.
    """
    single = file_in(WEIGHTS)
    index = file_in(INDEX)
    if single.exists() or not index.exists():
        return Weights.open(single)
    tensors: dict[str, Stored] = {}
    for name in sorted(_listed(index)):
        tensors |= Weights.open(file_in(name)).tensors
    return Weights(index, tensors)


def _listed(index: Path) -> set[str]:
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index}: has no weight_map from tensors to files. Get the folder again")
    return set(names.values())


def on_meta(build: Callable[[], nn.Module], weights: Weights, config: object) -> nn.Module:
    """Return the module that `build` makes, on the meta device: without memory for its weights.

    Raise UserError, naming `config`, if it cannot be built, or has more parameters than `weights` can hold.
    """
    left = 2 * len(weights.tensors) + 100  # an encoder may build layers and drop them again

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise UserError(
                f"{config}: describes a larger model than the {len(weights.tensors)} tensors of {weights.path}. "
                "Get both files again, from the same model"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise UserError(f"{config}: such a model cannot be built ({reason_of(error)}). Correct the file") from error
    finally:
        handle.remove()


def _kind(tensor: Stored | Tensor | None, otherwise: str) -> str:
    """Return the shape of a tensor as text, with its type if that is not floating point."""
    if tensor is None:
        return otherwise
    floating = tensor.dtype in FLOATS if isinstance(tensor, Stored) else tensor.is_floating_point()
    return f"{tuple(tensor.shape)}" + ("" if floating else f" of {tensor.dtype}")

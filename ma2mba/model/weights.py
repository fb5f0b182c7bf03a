"""Read weights that somebody else wrote: sizes are compared before memory is taken, values must be finite."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ma2mba.errors import UserError
from ma2mba.model.tensor_file import FLOATS, HEADER_BYTES, Stored, TensorFile, reason_of
from ma2mba.text import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MOST_FILES = 1000
"""Files of the largest accepted index: each stays open while the model is loaded."""


class Weights:
    """The tensors of one or several safetensors files, by name. `path` names them in messages."""

    def __init__(self, path: Path, tensors: Mapping[str, Stored]):
        self.path, self.tensors = path, dict(tensors)

    @staticmethod
    def open(path: Path, sha256: str = "") -> "Weights":
        """Open one file, which must have the checksum `sha256` if one is given. Raise UserError if it is not sound."""
        return Weights(path, TensorFile.open(path, sha256).tensors)

    @property
    def files(self) -> list[TensorFile]:
        """The files that hold the tensors, each once."""
        return list(dict.fromkeys(stored.file for stored in self.tensors.values()))

    def verify(self) -> None:
        """Read all files. Raise UserError for the first whose checksum is known and differs."""
        for file in self.files:
            file.verify()

    def renamed(self, new_name: Callable[[str], str]) -> "Weights":
        return Weights(self.path, {new_name(name): stored for name, stored in self.tensors.items()})

    def part(self, prefix: str) -> "Weights":
        """Return the tensors whose names begin with `prefix`, without it."""
        chosen = {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}
        return Weights(self.path, chosen)

    def require(self, module: nn.Module, *, extra: bool = False) -> None:
        """Raise UserError that names tensors unless these are the tensors of `module`.

        The module may be on the meta device. The weights may hold a tied parameter under its second name as well, and
        with `extra` other tensors.
        """
        wanted, tied = stored_tensors(module), tied_names(module)
        found = {name: t for name, t in self.tensors.items() if name not in tied and (name in wanted or not extra)}
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

    @torch.no_grad()
    def copy_into(self, module: nn.Module, *, finite: bool = True) -> None:
        """Copy the tensors into a module that `require` accepts, on its device and in the dtypes of its parameters.

        The values come straight from the files, which are read once, and hashed meanwhile. Raise UserError if the
        checksum differs, and unless `finite` is False for a tensor with NaN or infinite values. The module must not be
        used then.
        """
        targets = stored_tensors(module)
        by_file: dict[TensorFile, dict[str, Tensor]] = defaultdict(dict)
        for name, target in targets.items():
            stored = self.tensors[name]
            by_file[stored.file][stored.name] = target
        for file, wanted in by_file.items():
            file.copy_tensors(wanted)
        for name, target in targets.items() if finite else ():
            self._require_finite(name, target)

    def require_finite(self) -> None:
        """Raise UserError that names the first tensor with NaN or infinite values. Reads all tensors."""
        for name in self.tensors:
            self.read(name)

    def read(self, name: str) -> Tensor:
        """Return a tensor. Raise UserError if it has NaN or infinite values."""
        values = self._read(name)
        self._require_finite(name, values)
        return values

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


def tied_names(module: nn.Module) -> set[str]:
    """Return the second names of parameters, such as the name of a head that is the embedding."""
    every = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return every - {name for name, _ in module.named_parameters()}


def stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module that a file holds, by name: a tied parameter only under its first name."""
    tied = tied_names(module)
    return {name: tensor for name, tensor in module.state_dict().items() if name not in tied}


def is_finite(values: Tensor) -> bool:
    """Return False if a tensor has NaN or infinite values.

    The smallest and the largest value say so without a second tensor, 20 times faster than `isfinite().all()`.
    """
    if not values.is_floating_point() or not values.numel():
        return True
    return all(bool(edge.isfinite()) for edge in torch.aminmax(values))


def open_weights(file_in: Callable[[str], Path], sums: Mapping[str, str] | None = None) -> Weights:
    """Open the weights of a folder: model.safetensors, or the files that model.safetensors.index.json lists.

    `file_in(name)` returns the path of a file of the folder, `sums` the checksums of all its files. Raise UserError if
    there are no weights, or if the index and the files disagree.
    """
    sums = sums or {}
    single, index = file_in(WEIGHTS), file_in(INDEX)
    if WEIGHTS in sums if sums else single.exists() or not index.exists():
        return Weights.open(single, sums.get(WEIGHTS, ""))
    tensors: dict[str, Stored] = {}
    for name, names in listed(index).items():
        if sums and name not in sums:
            raise UserError(f"{index}: lists {name!r}, but checksums.json does not. Export the model again")
        held = TensorFile.open(file_in(name), sums.get(name, "")).tensors
        if odd := sorted(names ^ held.keys()):
            fault = "has a tensor that the index does not list there" if odd[0] in held else "lacks a tensor"
            raise UserError(f"{index}: {name} {fault}: {reason_of(odd[0])}. Get the folder again")
        tensors |= held
    return Weights(index, tensors)


def listed(index: Path) -> dict[str, set[str]]:
    """Return the files that an index lists, and the tensors of each. Raise UserError if it is not an index."""
    content = read_json(index, HEADER_BYTES)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index}: has no weight_map from tensors to files. Get the folder again")
    files: dict[str, set[str]] = defaultdict(set)
    for tensor, name in places.items():
        files[name].add(tensor)
    if len(files) > MOST_FILES:
        raise UserError(f"{index}: lists {len(files):,} files, and at most {MOST_FILES:,} are read. Use larger files")
    return dict(sorted(files.items()))


def _kind(tensor: Stored | Tensor | None, otherwise: str) -> str:
    """Return the shape of a tensor as text, with its type if that is not floating point."""
    if tensor is None:
        return otherwise
    floating = tensor.dtype in FLOATS if isinstance(tensor, Stored) else tensor.is_floating_point()
    return f"{tuple(tensor.shape)}" + ("" if floating else f" of {tensor.dtype}")

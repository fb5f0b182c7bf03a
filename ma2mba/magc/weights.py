"""The parameters, buffers and settings of layers, as they are in one forward: backward must compute with the same.

Backward runs the layers again. So a tensor that changed since forward would silently give another function's gradient.
`Weights` notes all tensors of the layers in forward. In backward it puts tensors that were replaced back in place
(`torch.func.functional_call` removes its weights when it returns), and raises an error for tensors that were changed
in place.
"""

import gc
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

NOT_THERE: Any = object()
SHARDED = ("FSDPModule", "FullyShardedDataParallel")
"""Classes of modules whose hooks replace parameters in every call: FSDP2 and FSDP1."""


class Owned(NamedTuple):
    """A module and its name in messages, such as "layer 3 (GRULayer): gru"."""

    name: str
    module: nn.Module


class Place(NamedTuple):
    """Where a module holds a tensor: in `table`, its parameters or buffers, by `key`.

    held   The tensor that the table held when forward began.
    used   The tensor that the layers compute with: `held`, or for a result of other operations a leaf with its values.
    """

    module: nn.Module
    table: dict[str, Any]
    key: str
    held: Tensor
    used: Tensor

    def put(self, tensor: Any) -> None:
        """Let the module hold another tensor, or none for NOT_THERE."""
        if tensor is NOT_THERE:
            del self.table[self.key]
            return
        self.table[self.key] = tensor
        if isinstance(self.module, nn.RNNBase) and self.key in self.module._flat_weights_names:
            at = self.module._flat_weights_names.index(self.key)
            self.module._flat_weights[at] = tensor
            self.module._flat_weight_refs[at] = weakref.ref(tensor)  # PyTorch compares these in forward


def modules_of(name: str, modules: Iterable[nn.Module]) -> tuple[Owned, ...]:
    """Return all modules inside `modules`. Raises ValueError for a module that FSDP has sharded."""
    owned = []
    for module in modules:
        for path, inner in module.named_modules():
            owned.append(Owned(f"{name}: {path}" if path else name, inner))
            if any(cls.__name__ in SHARDED for cls in type(inner).__mro__):
                raise ValueError(
                    f"{owned[-1].name}: FSDP has sharded this module, and replaces its parameters in every call. Shard "
                    "the model that calls the layers, not the layers (fully_shard(model)), or use ZeRO 1 or 2"
                )
    return tuple(owned)


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Return a module's own parameters and buffers, without its submodules'."""
    return [t for table in (module._parameters, module._buffers) for t in table.values() if t is not None]


class Weights:
    """The tensors of `modules` at the moment of construction. Raises ValueError for a parameter that ZeRO 3 holds.

    parameters  The tensors that need a gradient, each once.
    used        For each of `parameters` the tensor that the layers compute with (see `Place`).
    """

    def __init__(self, modules: Sequence[Owned]):
        self._modules = modules
        self._places: list[Place] = []
        leaves: dict[Tensor, Tensor] = {}
        for name, module in modules:
            for table in (_as_dict(module._parameters), _as_dict(module._buffers)):
                for key, tensor in table.items():
                    if tensor is None:
                        continue
                    _raise_if_partitioned(name, key, tensor)
                    used = tensor if tensor.is_leaf else leaves.get(tensor)
                    if used is None:
                        used = tensor.detach().requires_grad_()
                    if used.requires_grad:
                        leaves[tensor] = used
                    self._places.append(Place(module, table, key, tensor, used))
        self.parameters, self.used = tuple(leaves), tuple(leaves.values())
        self._known = {id(tensor) for tensor in self.used}
        with self.installed():
            self._noted = [_note(module) for _, module in modules]

    def __contains__(self, tensor: Tensor) -> bool:
        """Return True if the layers may compute with this tensor: it gets its gradient."""
        return id(tensor) in self._known

    @contextmanager
    def installed(self) -> Iterator[bool]:
        """Let the modules hold the tensors of forward while a block runs. Yield True if they held others."""
        changed = [(p, own) for p in self._places if (own := p.table.get(p.key, NOT_THERE)) is not p.used]
        for place, _ in changed:
            place.put(place.used)
        try:
            yield bool(changed)
        finally:
            for place, own in changed:
                place.put(own)

    def check(self, when: str) -> None:
        """Raise RuntimeError if a tensor or the training mode has changed since forward began.

        Call it inside `installed`. `when` completes the message, for example "between forward and backward".
        """
        for (name, module), noted in zip(self._modules, self._noted, strict=True):
            now = _note(module)
            if now != noted:
                raise RuntimeError(_difference(name, module, noted, now, when))


@contextmanager
def hooks_paused(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Run no hook of these tensors while a block runs. Autograd runs each hook later, with the whole gradient."""
    paused = [(hooks, dict(hooks)) for t in tensors if (hooks := t._backward_hooks)]
    for hooks, _ in paused:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, own in paused:
            hooks.update(own)


def version(tensor: Tensor) -> int:
    """Return the number of changes in place that autograd has counted; 0 for an inference tensor."""
    return 0 if tensor.is_inference() else tensor._version


def owner_in_words(tensor: Tensor) -> str:
    """Return the name of a parameter and the class of its module, or the tensor's shape if no module owns it."""
    for found in gc.get_objects():
        if issubclass(type(found), nn.Module):
            for name, parameter in vars(found).get("_parameters", {}).items():
                if parameter is tensor:
                    return f"`{name}` of a {type(found).__name__}"
    return f"a tensor of shape {tuple(tensor.shape)}"


def _as_dict(table: Any) -> dict[str, Any]:
    """Return a module's table of tensors. A scripted module's is no dict, and its tensors cannot be replaced."""
    return table if isinstance(table, dict) else dict(table.items())


def _note(module: nn.Module) -> dict[str, Any]:
    """Return identity, version and dtype of each tensor of a module, and its training mode.

    A hook before forward may compute an attribute anew in every call (`torch.nn.utils.weight_norm`): it is no state.
    """
    noted: dict[str, Any] = {"training": module.training}
    own: dict[str, Any] = {} if module._forward_pre_hooks else vars(module)
    tables: tuple[dict[str, Any], ...] = module._parameters, module._buffers, own
    for table in tables:
        for key, value in table.items():
            if isinstance(value, Tensor):
                noted[key] = id(value), version(value), value.dtype
    return noted


def _difference(name: str, module: nn.Module, noted: dict[str, Any], now: dict[str, Any], when: str) -> str:
    """Return what has changed, and the remedy."""
    key = next(key for key in {**noted, **now} if noted.get(key) != now.get(key))
    if key == "training":
        return f"{name}: train() or eval() was called {when}. Call it before forward or after backward"
    if key in module._parameters:
        same = key in noted and key in now and noted[key][0] == now[key][0]
        how = ("converted" if noted[key][2] != now[key][2] else "changed in place") if same else "replaced"
        return f"{name}: the parameter `{key}` was {how} {when}. Its gradient would be wrong: change it after backward"
    if key in module._buffers:
        return (
            f"{name}: the buffer `{key}` changed {when}. Backward runs a chunk again and would use another value. Call "
            f"eval() on the {type(module).__name__}, or carry the value in the state. (A buffer that the first call "
            "creates: call the layer once before)"
        )
    return (
        f"{name}: the attribute `{key}` changed {when}. A layer may keep no tensor between calls, because backward "
        "runs a chunk again. Carry it in the state"
    )


def _raise_if_partitioned(name: str, key: str, tensor: Tensor) -> None:
    status = getattr(tensor, "ds_status", None)
    if status is not None and status.name != "AVAILABLE":
        raise ValueError(
            f"{name}: ZeRO 3 has partitioned the parameter `{key}`. Let one module call the engine, and gather its "
            "parameters together: deepspeed.utils.set_z3_leaf_modules(model, [TheModulesClass]). Or use ZeRO 1 or 2"
        )

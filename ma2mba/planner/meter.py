"""Measure the bytes that a computation holds: ask the allocator of a CUDA device, and count storages elsewhere.

Counting works on the meta device too, which computes nothing: it measures a layer of any width and length in
milliseconds.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of every storage that is created while the mode is on, until the storage is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self._known: dict[weakref.ref[Any], int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for tensor in tensors_in([args, *(kwargs or {}).values()]):
            self._meet(tensor, 0)
        result = function(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            self._meet(tensor, tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _meet(self, tensor: Tensor, size: int) -> None:
        """Count a storage when it first appears. Arguments have a size of 0: they existed before the mode."""
        reference = weakref.ref(tensor.untyped_storage(), self._forget)
        if reference not in self._known:
            self._known[reference] = size
            self.live += size

    def _forget(self, reference: "weakref.ref[Any]") -> None:
        self.live -= self._known.pop(reference, 0)


class _CudaBytes:
    """The bytes that the caching allocator has allocated."""

    def __init__(self, device: torch.device):
        self._device = device
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        self._before = torch.cuda.memory_allocated(device)

    @property
    def live(self) -> int:
        return torch.cuda.memory_allocated(self._device) - self._before

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) - self._before


class _OnMeta(TorchFunctionMode):
    """Replaces what the meta device cannot do: a mask selects every element, and attention is fused."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.__getitem__ and _is_mask(args[1]):
            return args[0].flatten(0, args[1].dim() - 1).clone()
        if function is F.scaled_dot_product_attention and args[0].is_meta and kwargs.get("attn_mask") is None:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args[:3])[0]
        return function(*args, **kwargs)


@contextmanager
def measuring(device: torch.device) -> Iterator["LiveBytes | _CudaBytes"]:
    """Measure the bytes that the block allocates on `device`: at this moment (`live`), and at most so far (`peak`).

    Memory from before the block does not count.
    """
    if device.type == "cuda":
        yield _CudaBytes(device)
        torch.cuda.synchronize(device)
        return
    with ExitStack() as stack:
        if device.type == "meta":
            stack.enter_context(_OnMeta())
        yield stack.enter_context(LiveBytes())


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.is_meta


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested lists and tuples."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for branch in tree:
            yield from tensors_in(branch)

"""Train a model of another library with multi-axis gradient checkpointing, in place.

Only the `forward` of the model's blocks changes: the first block runs all blocks through `checkpoint`, and the other
blocks pass their input through. Embedding, final norm, head, loss and return value remain the model's own code.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ma2mba.adapters.auto_plan import AutoPlan
from ma2mba.adapters.mamba2 import MambaSsmAdapter, TransformersAdapter
from ma2mba.magc.api import checkpoint
from ma2mba.magc.plan import Plan

MARK = "_magc_attachment"
Model = TypeVar("Model", bound=nn.Module)
logger = logging.getLogger("ma2mba.magc")


class Adapter(Protocol):
    """How a model calls its blocks. The last four methods get the arguments of a block's `forward`."""

    def layer(self, block: nn.Module) -> nn.Module:
        """Return the block as `layer(x, state) -> (x, state)`. Raises ValueError for an unsupported block."""

    def check_call(self, backbone: nn.Module, /, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError if a call of the backbone needs more from the blocks than the last block's output."""

    def uses_cache(self, *args: Any, **kwargs: Any) -> bool:
        """Return True if the call reads or writes a cache. The model's own code then runs it."""

    def first_input(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the input of the first layer, (batch, tokens, width)."""

    def last_output(self, block: nn.Module, y: Tensor, /, *args: Any, **kwargs: Any) -> Any:
        """Return what the last block returns if y is the output of the last layer."""

    def pass_through(self, *args: Any, **kwargs: Any) -> Any:
        """Return what a block returns if it does nothing."""


ADAPTERS: dict[tuple[str, str], Adapter] = {
    ("mamba_ssm", "MambaLMHeadModel"): MambaSsmAdapter(),
    ("transformers", "Mamba2ForCausalLM"): TransformersAdapter(),
}
"""Package and name of a model's class -> how to adapt the model."""


def attach(model: Model, plan: Plan | None = None) -> Model:
    """Make a model train with multi-axis gradient checkpointing. Return the same object.

    model  A `MambaLMHeadModel` of mamba-ssm with Mamba-2 blocks, or a `Mamba2ForCausalLM` of transformers.
    plan   How to checkpoint. None: choose the fastest plan that fits in the free memory at the first forward, and
           choose again for a longer or larger batch.
    Parameters and results stay the same. Calls without gradients and calls with a cache (generation) run the model's
    own code. The model still returns the logits of all tokens, which need as much memory as before.
    Raises ValueError for an unsupported model or block, and for a model that is already attached. Later calls raise
    ValueError for unsupported arguments, for example a mask with padding, and for hooks added to blocks since then.
    """
    if MARK in vars(model):
        raise ValueError("the model is already attached. Detach it first")
    adapter = find_adapter(model)
    if adapter is None:
        raise ValueError(_not_supported(model))
    setattr(model, MARK, Attachment(model, adapter, plan))
    return model


def find_adapter(model: nn.Module) -> Adapter | None:
    """Return the adapter for a model's class or for a class that it inherits from; None if there is none."""
    classes = ((cls.__module__.split(".")[0], cls.__name__) for cls in type(model).__mro__)
    return next((ADAPTERS[key] for key in classes if key in ADAPTERS), None)


def _not_supported(model: nn.Module) -> str:
    """Return why a model cannot be attached. A wrapper (PeftModel, torch.compile, DDP) has a model inside."""
    kind = f"{type(model).__name__} of {type(model).__module__.split('.')[0]} is not supported"
    inner = next((name for name, module in model.named_modules() if find_adapter(module)), None)
    if inner is not None:
        return f"{kind}: it wraps a {type(model.get_submodule(inner)).__name__}. Attach that: attach(model.{inner})"
    names = " or ".join(f"{name} of {package}" for package, name in ADAPTERS)
    return f"{kind}. Attach a {names}, or use ma2mba.magc.checkpoint"


def detach(model: Model) -> Model:
    """Undo `attach` and return the same object. Raises ValueError if the model is not attached."""
    if MARK not in vars(model):
        raise ValueError("the model is not attached")
    vars(model).pop(MARK).remove()
    return model


class Attachment:
    """The changes that `attach` makes to a model; `remove` undoes them."""

    def __init__(self, model: Any, adapter: Adapter, plan: Plan | None):
        self._adapter, self._plan, self._backbone = adapter, plan, model.backbone
        self._head, self._auto_plan, self._warned = model.lm_head, AutoPlan(), False
        self._layers()  # raises ValueError for an unsupported block before anything changes
        # Methods bound to this object: a deep copy of the model then runs the copy's blocks.
        for i, block in enumerate(self._blocks):
            block.forward = partial(self._forward, i)
        self._hook = self._backbone.register_forward_pre_hook(self._check, with_kwargs=True)

    def remove(self) -> None:
        self._hook.remove()
        for block in self._blocks:
            if self._is_ours(vars(block).get("forward")):
                del block.forward

    @property
    def _blocks(self) -> Sequence[Any]:
        return self._backbone.layers

    def _layers(self) -> list[nn.Module]:
        """Return the blocks as layers. Raises ValueError for a block that is unsupported, or became so since attach."""
        for i, block in enumerate(self._blocks):
            forward = vars(block).get("forward")
            if forward is not None and not self._is_ours(forward):
                raise ValueError(
                    f"block {i} has a replaced forward, which magc.attach would ignore. Some packages (accelerate) "
                    "replace it: undo that first"
                )
        return [self._adapter.layer(block) for block in self._blocks]

    def _is_ours(self, forward: Any) -> bool:
        return isinstance(forward, partial) and forward.func == self._forward

    def _check(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            self._adapter.check_call(backbone, *args, **kwargs)

    def _forward(self, i: int, *args: Any, **kwargs: Any) -> Any:
        """Replace the forward of block i."""
        uses_cache = self._adapter.uses_cache(*args, **kwargs)
        if uses_cache or not torch.is_grad_enabled():
            self._warn_once(uses_cache and torch.is_grad_enabled())
            return type(self._blocks[i]).forward(self._blocks[i], *args, **kwargs)
        if i > 0:
            return self._adapter.pass_through(*args, **kwargs)
        y = self._run_layers(self._adapter.first_input(*args, **kwargs))
        return self._adapter.last_output(self._blocks[-1], y, *args, **kwargs)

    def _run_layers(self, x: Tensor) -> Tensor:
        """Run all blocks with checkpointing; the residual stream is in fp32 or wider."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        layers = self._layers()
        plan = self._plan or self._auto_plan.plan(layers, x, [*self._backbone.parameters()], len(self._head.weight))
        y, _ = checkpoint(nn.ModuleList(layers), x, None, plan)
        return y

    def _warn_once(self, cache_with_gradients: bool) -> None:
        if cache_with_gradients and not self._warned:
            self._warned = True
            logger.warning("a call with a cache runs without MA-GC; to train, call model.train() or use_cache=False")

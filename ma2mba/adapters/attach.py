"""Train a model of another library with multi-axis gradient checkpointing, in place.

Of the model only the `forward` of its blocks changes: the first runs all of them by `checkpoint`, the others hand on
what they get. Embedding, final norm, head, loss and what the model returns stay its own code.
"""

import importlib
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ma2mba.adapters.auto_plan import AutoPlan
from ma2mba.magc.api import checkpoint
from ma2mba.magc.plan import Plan

ADAPTERS = {"MambaLMHeadModel": "ma2mba.adapters.mamba2", "Mamba2ForCausalLM": "ma2mba.adapters.mamba2"}
"""Class of a model -> the module whose ADAPTED holds its `Adapter`; imported when such a model is attached, and only
then: nothing else of `ma2mba.magc` needs more than torch."""
MARK = "_magc_attachment"
Model = TypeVar("Model", bound=nn.Module)
logger = logging.getLogger("ma2mba.magc")


class Adapter(Protocol):
    """How a kind of model calls its blocks. All but the first two get the arguments of a block's forward."""

    def layer(self, block: nn.Module) -> nn.Module:
        """The block as `layer(x, state) -> (x, state)`. Raises ValueError for a block that cannot be one."""

    def check(self, backbone: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError for a call of the backbone that asks for what attached blocks do not have."""

    def continues(self, *args: Any, **kwargs: Any) -> bool:
        """Whether the call reads or writes a cache: then it is the model's own affair."""

    def enter(self, *args: Any, **kwargs: Any) -> Tensor:
        """What flows into the first layer, (batch, tokens, width)."""

    def leave(self, block: nn.Module, y: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the last block would return for y after the last layer."""

    def skip(self, *args: Any, **kwargs: Any) -> Any:
        """What a block returns that does nothing."""


def attach(model: Model, plan: Plan | None = None) -> Model:
    """Make a model train with multi-axis gradient checkpointing; the same object, with the same parameters and results.

    model  a `MambaLMHeadModel` of mamba-ssm (Mamba-2 blocks) or a `Mamba2ForCausalLM` of transformers.
    plan   how; without one the fastest that fits into the memory that is free at the first forward, chosen again when
           a longer or larger batch comes.
    Calls without gradients and calls with a cache (generation) run the model's own code. Logits of all tokens are the
    model's own output, and as large as without MA-GC. Raises ValueError for another kind of model, one that is attached
    already, blocks that the layer cannot compute, and, later, arguments that it cannot honour (a mask with padding).
    """
    if MARK in vars(model):
        raise ValueError("the model is attached already; detach it first")
    name = next((cls.__name__ for cls in type(model).__mro__ if cls.__name__ in ADAPTERS), None)
    if name is None:
        raise ValueError(f"{type(model).__name__} is none of {', '.join(ADAPTERS)}; use ma2mba.magc.checkpoint")
    family = importlib.import_module(ADAPTERS[name]).ADAPTED[name]()
    setattr(model, MARK, Attachment(model, family, plan))
    return model


def detach(model: Model) -> Model:
    """Give an attached model back as it was. Raises ValueError for one that is not attached."""
    if MARK not in vars(model):
        raise ValueError("the model is not attached")
    vars(model).pop(MARK).remove()
    return model


class Attachment:
    """What `attach` does to a model, and undoes."""

    def __init__(self, model: Any, family: Adapter, plan: Plan | None):
        self._family, self._plan, self._backbone = family, plan, model.backbone
        self._head, self._unplanned, self._warned = model.lm_head, AutoPlan(), False
        self._layers()
        self._before = [vars(block).get("forward") for block in self._blocks]
        # Bound methods of this object, so that a deep copy of the model runs its own blocks.
        for i, block in enumerate(self._blocks):
            block.forward = partial(self._forward, i)
        self._hook = self._backbone.register_forward_pre_hook(self._check, with_kwargs=True)

    def remove(self) -> None:
        self._hook.remove()
        for block, before in zip(self._blocks, self._before, strict=True):
            del block.forward
            if before is not None:
                block.forward = before

    @property
    def _blocks(self) -> Sequence[Any]:
        return self._backbone.layers

    def _layers(self) -> list[nn.Module]:
        return [self._family.layer(block) for block in self._blocks]

    def _check(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            self._family.check(backbone, *args, **kwargs)

    def _forward(self, i: int, *args: Any, **kwargs: Any) -> Any:
        """The forward of block i."""
        continues = self._family.continues(*args, **kwargs)
        if continues or not torch.is_grad_enabled():
            if continues and torch.is_grad_enabled() and not self._warned:
                self._warned = True
                logger.warning(
                    "a call with a cache runs without MA-GC; to train, call model.train() or use_cache=False"
                )
            own = self._before[i] or partial(type(self._blocks[i]).forward, self._blocks[i])
            return own(*args, **kwargs)
        if i > 0:
            return self._family.skip(*args, **kwargs)
        x = self._family.enter(*args, **kwargs)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        layers = self._layers()
        plan = self._plan or self._unplanned.plan(layers, x, [*self._backbone.parameters()], len(self._head.weight))
        y, _ = checkpoint(nn.ModuleList(layers), x, None, plan)
        return self._family.leave(self._blocks[-1], y, *args, **kwargs)

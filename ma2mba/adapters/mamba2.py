"""Mamba-2 blocks of mamba-ssm and transformers as layers that `ma2mba.magc.attach` trains.

Each family says how its backbone calls a block. Parameters stay where they are; the arithmetic is `ma2mba.ops`'.

B batch, T tokens, D model width.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ma2mba.model.layer import State
from ma2mba.model.mamba2 import Mamba2Layer
from ma2mba.ops import LayerShape, LayerWeights, mamba2_layer, mamba2_layer_product

LIMITLESS = (0.0, float("inf"))
MIXED = ("norm_D", "in_proj_XD", "gated_norm_I", "out_proj_DI")
"""Parameters that autocast takes in its own dtype: the projections, and what gives them their inputs."""


class AdaptedLayer(Mamba2Layer):
    """A block's norm and mixer as a layer of this project's: they name their parameters alike.

    Under autocast the weights of MIXED are taken in autocast's dtype, as the block itself would.
    """

    def __init__(self, norm: Any, mixer: Any, shape: LayerShape):
        nn.Module.__init__(self)
        self.norm, self.mixer, self.shape = norm, mixer, shape

    def forward(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        x_BTD, *state_after = self._run(mamba2_layer, x_BTD, state)
        return x_BTD, tuple(state_after)

    def remember(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State, Tensor | None]:
        x_BTD, *state_after, memo = self._run(mamba2_layer_product, x_BTD, state)
        return x_BTD, tuple(state_after), memo

    def recall(self, x_BTD: Tensor, state: State, memo: Tensor) -> tuple[Tensor, State]:
        x_BTD, *state_after = self._run(mamba2_layer, x_BTD, state, memo)
        return x_BTD, tuple(state_after)

    def _run(self, function: Callable[..., Any], x_BTD: Tensor, state: State, *memo: Tensor) -> Any:
        """The function itself knows nothing of autocast: scans stay in fp32."""
        weights, kind = self.weights, x_BTD.device.type
        with torch.autocast(kind, enabled=False) if _mixes(kind) else nullcontext():
            return function(x_BTD, *state, weights, self.shape, *memo)

    @property
    def weights(self) -> LayerWeights:
        weights, kind = super().weights, self.mixer.in_proj.weight.device.type
        if not _mixes(kind):
            return weights
        dtype = torch.get_autocast_dtype(kind)
        return replace(weights, **{name: getattr(weights, name).to(dtype) for name in MIXED})


class MambaSsm:
    """`MambaLMHeadModel`: block(hidden_states, residual, inference_params) -> hidden_states, residual, to be added."""

    @staticmethod
    def layer(block: Any) -> AdaptedLayer:
        """Raises ValueError for a block that is not a Mamba-2 one as `mamba2_layer` computes it."""
        m: Any = block.mixer
        if type(m).__name__ != "Mamba2":
            raise ValueError(f"a block's mixer is {type(m).__name__}; attach knows blocks of Mamba2 alone")
        gated = m.norm if m.rmsnorm else None
        _refuse(
            {
                "an MLP beside the mixer": block.mlp is not None,
                "LayerNorm (rms_norm=False)": block.norm.bias is not None,
                "dropout in the norm": getattr(block.norm, "drop", None) is not None,
                "rmsnorm=False": gated is None,
                "norm_before_gate=True": m.norm_before_gate,
                f"dt_limit={m.dt_limit}": tuple(m.dt_limit) != LIMITLESS,
                "D_has_hdim=True": m.D_has_hdim,
                f"d_ssm={m.d_ssm}": m.d_ssm != m.d_inner,
                "a process_group": m.process_group is not None,
                **_unequal(block.norm.eps, gated.eps if gated else block.norm.eps),
                **_unlike(m),
            }
        )
        return AdaptedLayer(block.norm, m, LayerShape(m.headdim, m.ngroups, m.d_state, m.chunk_size, block.norm.eps))

    @staticmethod
    def check(backbone: Any, *_: Any, **__: Any) -> None:
        """Every call of the backbone is one that blocks can see."""

    @staticmethod
    def continues(hidden: Tensor, residual: Tensor | None = None, inference_params: Any = None, **_: Any) -> bool:
        return inference_params is not None

    @staticmethod
    def enter(hidden: Tensor, residual: Tensor | None = None, inference_params: Any = None, **others: Any) -> Tensor:
        _refuse_arguments(others)
        return hidden if residual is None else hidden + residual

    @staticmethod
    def leave(block: Any, y_BTD: Tensor, hidden: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(hidden), y_BTD if block.residual_in_fp32 else y_BTD.to(hidden.dtype)

    @staticmethod
    def skip(hidden: Tensor, residual: Tensor | None = None, *_: Any, **__: Any) -> tuple[Tensor, Tensor | None]:
        return hidden, residual


class Transformers:
    """`Mamba2ForCausalLM`: block(hidden_states, cache_params, attention_mask) -> hidden_states."""

    @staticmethod
    def layer(block: Any) -> AdaptedLayer:
        """Raises ValueError for a block that `mamba2_layer` does not compute."""
        m: Any = block.mixer
        _refuse(
            {
                f"time_step_limit={m.time_step_limit}": tuple(m.time_step_limit) != LIMITLESS,
                f"hidden_act={m.activation}": m.activation not in ("silu", "swish"),
                f"n_groups={m.n_groups} beside a gated norm that knows no groups (an older transformers)": (
                    m.n_groups > 1 and not hasattr(m.norm, "group_size")
                ),
                **_unequal(block.norm.variance_epsilon, m.norm.variance_epsilon),
                **_unlike(m),
            }
        )
        eps = block.norm.variance_epsilon
        return AdaptedLayer(block.norm, m, LayerShape(m.head_dim, m.n_groups, m.ssm_state_size, m.chunk_size, eps))

    @staticmethod
    def check(backbone: Any, *_: Any, output_hidden_states: bool | None = None, **__: Any) -> None:
        """Raises ValueError for what asks of a block more than its output."""
        wanted = backbone.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if wanted:
            raise ValueError("output_hidden_states keeps every layer's output, which MA-GC never has; set it to False")
        if backbone.training and any(getattr(block, "gradient_checkpointing", False) for block in backbone.layers):
            raise ValueError("transformers' own checkpointing is on; call model.gradient_checkpointing_disable()")

    @staticmethod
    def continues(hidden: Tensor, cache_params: Any = None, *_: Any, **__: Any) -> bool:
        return cache_params is not None

    @staticmethod
    def enter(hidden: Tensor, cache_params: Any = None, attention_mask: Tensor | None = None, **others: Any) -> Tensor:
        _refuse_arguments(others)
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError(
                "attention_mask has zeros, and no layer here skips tokens; for padding on the right leave "
                "the mask out and give the padding labels of -100: no token before it sees it"
            )
        return hidden

    @staticmethod
    def leave(block: Any, y_BTD: Tensor, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return y_BTD if block.residual_in_fp32 else y_BTD.to(hidden.dtype)

    @staticmethod
    def skip(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden


ADAPTED = {"MambaLMHeadModel": MambaSsm, "Mamba2ForCausalLM": Transformers}
"""By the name of the model's class."""


def _mixes(kind: str) -> bool:
    return kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)


def _refuse(reasons: dict[str, bool]) -> None:
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise ValueError(f"this model cannot train through magc.attach, its blocks have {'; '.join(found)}")


def _refuse_arguments(others: dict[str, Any]) -> None:
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)}: not supported by magc.attach; leave out, or detach the model first")


def _unlike(mixer: Any) -> dict[str, bool]:
    """What a layer that reads the weights would miss: other projections (adapters, quantised weights), hooks."""
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in mixer.modules() if m is not mixer)
    return {
        "a bias in their projections (use_bias, bias)": any(p.bias is not None for p in _projections(mixer)),
        "a convolution without bias": mixer.conv1d.bias is None,
        "projections that are not plain nn.Linear": any(type(p) is not nn.Linear for p in _projections(mixer)),
        "hooks inside their mixers": hooked,
    }


def _projections(mixer: Any) -> Iterable[Any]:
    return mixer.in_proj, mixer.out_proj


def _unequal(eps: float, gated_eps: float) -> dict[str, bool]:
    return {f"norms of different eps ({eps} and {gated_eps})": eps != gated_eps}

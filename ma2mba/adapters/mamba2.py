"""Adapters for the Mamba-2 models of mamba-ssm and transformers, for `ma2mba.magc.attach`.

An adapter (`attach.Adapter`) knows how the library calls a block, and turns a block into a layer. The layer uses the
block's own parameters and computes with `ma2mba.ops`.

B batch, T tokens, D model width.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ma2mba.model.layer import State
from ma2mba.model.mamba2 import Mamba2Layer
from ma2mba.ops import LayerShape, LayerWeights, mamba2_layer, mamba2_layer_product

NO_LIMIT = (0.0, float("inf"))
MIXED = ("norm_D", "in_proj_XD", "gated_norm_I", "out_proj_DI")
"""Weights that autocast converts to its dtype: the projections, and the norms that produce their inputs."""


class AdaptedLayer(Mamba2Layer):
    """The norm and mixer of a block as a `Mamba2Layer`, whose parameters have the same names.

    Under autocast the weights in MIXED are converted to autocast's dtype, as in the block's own code.
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
        """Call the function with autocast disabled: `weights` is already converted, and scans must stay in fp32."""
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


class MambaSsmAdapter:
    """`MambaLMHeadModel`: block(hidden_states, residual, inference_params) -> hidden_states, residual.

    The sum of the two results is the residual stream.
    """

    @staticmethod
    def layer(block: Any) -> AdaptedLayer:
        """Return the block as a layer. Raises ValueError if `mamba2_layer` cannot compute it."""
        m: Any = block.mixer
        if type(m).__name__ != "Mamba2":
            raise ValueError(f"the mixer of a block is {type(m).__name__}. magc.attach supports only Mamba2 mixers")
        gated = m.norm if m.rmsnorm else None
        _raise_for(
            {
                "an MLP after the mixer": block.mlp is not None,
                "LayerNorm (rms_norm=False)": block.norm.bias is not None,
                "dropout in the norm": getattr(block.norm, "drop", None) is not None,
                "rmsnorm=False": gated is None,
                "norm_before_gate=True": m.norm_before_gate,
                f"dt_limit={m.dt_limit}": tuple(m.dt_limit) != NO_LIMIT,
                "D_has_hdim=True": m.D_has_hdim,
                f"d_ssm={m.d_ssm}": m.d_ssm != m.d_inner,
                "a process_group": m.process_group is not None,
                **_unequal(block.norm.eps, gated.eps if gated else block.norm.eps),
                **_unlike(m),
                **_own_code(block, "mamba_ssm"),
            }
        )
        return AdaptedLayer(block.norm, m, LayerShape(m.headdim, m.ngroups, m.d_state, m.chunk_size, block.norm.eps))

    @staticmethod
    def check_call(backbone: Any, *_: Any, **__: Any) -> None:
        """Accept every call: no argument of this backbone needs more than the last block's output."""

    @staticmethod
    def uses_cache(hidden: Tensor, residual: Tensor | None = None, inference_params: Any = None, **_: Any) -> bool:
        return inference_params is not None

    @staticmethod
    def first_input(
        hidden: Tensor, residual: Tensor | None = None, inference_params: Any = None, **others: Any
    ) -> Tensor:
        _raise_for_arguments(others)
        return hidden if residual is None else hidden + residual

    @staticmethod
    def last_output(block: Any, y_BTD: Tensor, hidden: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(hidden), y_BTD if block.residual_in_fp32 else y_BTD.to(hidden.dtype)

    @staticmethod
    def pass_through(
        hidden: Tensor, residual: Tensor | None = None, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor | None]:
        return hidden, residual


class TransformersAdapter:
    """`Mamba2ForCausalLM`: block(hidden_states, cache, attention_mask) -> hidden_states.

    Before transformers 5.24 the cache argument was called cache_params.
    """

    @staticmethod
    def layer(block: Any) -> AdaptedLayer:
        """Return the block as a layer. Raises ValueError if `mamba2_layer` cannot compute it."""
        m: Any = block.mixer
        _raise_for(
            {
                f"time_step_limit={m.time_step_limit}": tuple(m.time_step_limit) != NO_LIMIT,
                f"hidden_act={m.activation}": m.activation not in ("silu", "swish"),
                f"n_groups={m.n_groups} and a gated norm without groups (an older version of transformers)": (
                    m.n_groups > 1 and not hasattr(m.norm, "group_size")
                ),
                **_unequal(block.norm.variance_epsilon, m.norm.variance_epsilon),
                **_unlike(m),
                **_own_code(block, "transformers"),
            }
        )
        eps = block.norm.variance_epsilon
        return AdaptedLayer(block.norm, m, LayerShape(m.head_dim, m.n_groups, m.ssm_state_size, m.chunk_size, eps))

    @staticmethod
    def check_call(backbone: Any, *_: Any, output_hidden_states: bool | None = None, **__: Any) -> None:
        """Raises ValueError for `output_hidden_states`, and if transformers' own checkpointing is enabled."""
        wanted = backbone.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if wanted:
            raise ValueError("output_hidden_states is not supported: MA-GC keeps no layer outputs. Set it to False")
        if backbone.training and any(getattr(block, "gradient_checkpointing", False) for block in backbone.layers):
            raise ValueError(
                "gradient checkpointing of transformers is enabled. Call model.gradient_checkpointing_disable()"
            )

    @staticmethod
    def uses_cache(hidden: Tensor, *args: Any, cache: Any = None, cache_params: Any = None, **_: Any) -> bool:
        return any(given is not None for given in (*args[:1], cache, cache_params))

    @staticmethod
    def first_input(hidden: Tensor, cache: Any = None, attention_mask: Tensor | None = None, **others: Any) -> Tensor:
        _raise_for_arguments(others)
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError(
                "attention_mask has zeros, but the layers cannot skip tokens. For padding on the right, omit the mask "
                "and set the labels of the padding to -100 (padding does not affect the tokens before it)"
            )
        return hidden

    @staticmethod
    def last_output(block: Any, y_BTD: Tensor, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return y_BTD if block.residual_in_fp32 else y_BTD.to(hidden.dtype)

    @staticmethod
    def pass_through(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden


def _mixes(kind: str) -> bool:
    """Return True if autocast is enabled for this kind of device."""
    return kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)


def _raise_for(reasons: dict[str, bool]) -> None:
    """Raise ValueError with all reasons that apply."""
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise ValueError(f"magc.attach does not support this model: its blocks have {'; '.join(found)}")


def _raise_for_arguments(others: dict[str, Any]) -> None:
    """Raise ValueError for arguments of a block that no layer honours."""
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)}: not supported by magc.attach. Omit it, or detach the model first")


def _own_code(block: nn.Module, package: str) -> dict[str, bool]:
    """Return hooks and changed code of a block. A layer reads the weights and runs no code of the block.

    package  The package whose code a layer computes, besides PyTorch's.
    """
    found: dict[str, bool] = {}
    for path, module in block.named_modules():
        name = f"`{path}`" if path else "itself"
        codes = type(module), type(module).forward
        found |= {
            f"a hook on {name}": any(_package(hook) != "transformers" for hook in _hooks(module)),
            f"a replaced forward on {name}": bool(path) and "forward" in vars(module),
            f"code of other packages ({type(module).__name__} as {name})": any(
                _package(code) not in ("torch", "ma2mba", package) for code in codes
            ),
        }
    return found


def _hooks(module: nn.Module) -> list[Any]:
    """Return the hooks of a module. transformers' own only record outputs, for `output_hidden_states`."""
    m = module
    tables = m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks
    return [hook for table in tables for hook in table.values()]


def _package(code: Any) -> str:
    return (getattr(code, "__module__", None) or "").split(".")[0]


def _unlike(mixer: Any) -> dict[str, bool]:
    """Return what a layer would compute wrongly in this mixer, and whether the mixer has it."""
    projections = mixer.in_proj, mixer.out_proj
    return {
        "a bias in their projections (use_bias, bias)": any(p.bias is not None for p in projections),
        "a convolution without bias": mixer.conv1d.bias is None,
        "projections that are not plain nn.Linear": any(type(p) is not nn.Linear for p in projections),
        "a convolution that is not a plain nn.Conv1d": type(mixer.conv1d) is not nn.Conv1d,
    }


def _unequal(eps: float, gated_eps: float) -> dict[str, bool]:
    """Return whether the two norms of a block have different eps. A layer has a single eps."""
    return {f"norms with different eps ({eps} and {gated_eps})": eps != gated_eps}

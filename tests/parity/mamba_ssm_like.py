"""A model with the structure of mamba-ssm's `MambaLMHeadModel`, in plain torch, for machines without its kernels.

A block adds the output of the block before to the residual, normalizes the sum, and returns the mixer's output and the
residual. The backbone adds the last two. With `fused_add_norm` one function computes the sum and the norm.

B batch, T tokens, D model width.
"""

from collections import namedtuple
from types import SimpleNamespace

from torch import Tensor, nn

from ma2mba.model.mamba2 import Mamba2Mixer
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.norm import RMSNorm
from ma2mba.ops import rms_norm
from ma2mba.ops.reference.conv import causal_conv
from ma2mba.ops.reference.ssd import ssd_scan


def add_norm(hidden: Tensor, norm: nn.Module, residual: Tensor | None, residual_in_fp32: bool) -> tuple[Tensor, Tensor]:
    """Return the norm of the sum in the dtype of `hidden`, and the sum in the residual's dtype.

    Without a residual, the sum is `hidden`, in fp32 if `residual_in_fp32`.
    """
    if residual is None:
        total = hidden.float() if residual_in_fp32 else hidden
    else:
        total = (hidden + residual).to(residual.dtype)
    return rms_norm(total, norm.weight, norm.eps).to(hidden.dtype), total


class Mamba2(Mamba2Mixer):
    """This project's mixer with the attributes of mamba-ssm's mixer, and a forward from zero states."""

    __module__ = "mamba_ssm.like"

    def __init__(self, config: Mamba2Config, norm_before_gate: bool):
        super().__init__(config)
        self.headdim, self.ngroups, self.d_state = config.headdim, config.ngroups, config.d_state
        self.chunk_size = config.ssd_block
        self.d_inner = self.d_ssm = config.d_inner
        self.rmsnorm, self.norm_before_gate, self.D_has_hdim, self.process_group = True, norm_before_gate, False, None
        self.dt_limit = (0.0, float("inf"))

    def forward(self, u_BTD: Tensor, inference_params=None) -> Tensor:
        heads, groups = self.D.shape[0], self.ngroups * self.d_state
        z, xBC, dt = self.in_proj(u_BTD).split([self.d_inner, self.d_inner + 2 * groups, heads], dim=-1)
        zeros = xBC.new_zeros(len(xBC), xBC.shape[2], self.conv1d.weight.shape[2] - 1)
        xBC, _ = causal_conv(xBC, self.conv1d.weight[:, 0], self.conv1d.bias, zeros)
        x, B, C = xBC.split([self.d_inner, groups, groups], dim=-1)
        per_group = (self.ngroups, self.d_state)
        x = x.unflatten(-1, (heads, self.headdim))
        zeros = x.new_zeros(len(x), heads, self.headdim, self.d_state)
        A, B, C = -self.A_log.exp(), B.unflatten(-1, per_group), C.unflatten(-1, per_group)
        y, _ = ssd_scan(x, dt, A, B, C, self.D, self.dt_bias, zeros, self.chunk_size)
        return self.out_proj(rms_norm(y.flatten(-2), self.norm.weight, self.norm.eps, z, self.ngroups))


class Block(nn.Module):
    __module__ = "mamba_ssm.like"

    def __init__(self, config: Mamba2Config, switches: SimpleNamespace):
        super().__init__()
        self.residual_in_fp32, self.fused_add_norm = switches.residual_in_fp32, switches.fused_add_norm
        self.norm = _norm(config.d_model, switches.norm_epsilon)
        self.mixer = Mamba2(config, switches.norm_before_gate)
        self.mlp = None

    def forward(self, hidden_states: Tensor, residual: Tensor | None = None, inference_params=None, **mixer_kwargs):
        if self.fused_add_norm:
            hidden_states, residual = add_norm(hidden_states, self.norm, residual, self.residual_in_fp32)
        else:
            residual = hidden_states + residual if residual is not None else hidden_states
            hidden_states = self.norm(residual.to(self.norm.weight.dtype))
            residual = residual.float() if self.residual_in_fp32 else residual
        return self.mixer(hidden_states, inference_params=inference_params, **mixer_kwargs), residual


class Backbone(nn.Module):
    def __init__(self, config: Mamba2Config, switches: SimpleNamespace):
        super().__init__()
        self.fused_add_norm, self.residual_in_fp32 = switches.fused_add_norm, switches.residual_in_fp32
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config, switches) for _ in range(config.n_layer))
        self.norm_f = _norm(config.d_model, switches.norm_epsilon)

    def forward(self, input_ids: Tensor, inference_params=None, **mixer_kwargs) -> Tensor:
        hidden, residual = self.embedding(input_ids), None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual, inference_params=inference_params, **mixer_kwargs)
        if self.fused_add_norm:
            return add_norm(hidden, self.norm_f, residual, self.residual_in_fp32)[0]
        return self.norm_f((hidden + residual).to(self.norm_f.weight.dtype))


class MambaLMHeadModel(nn.Module):
    __module__ = "mamba_ssm.like"

    def __init__(self, config: Mamba2Config, **switches):
        super().__init__()
        defaults = {"fused_add_norm": True, "residual_in_fp32": True, "norm_epsilon": 1e-5, "norm_before_gate": False}
        self.backbone = Backbone(config, SimpleNamespace(**(defaults | switches)))
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def forward(self, input_ids: Tensor, position_ids=None, inference_params=None, num_last_tokens=0, **mixer_kwargs):
        hidden = self.backbone(input_ids, inference_params=inference_params, **mixer_kwargs)
        hidden = hidden[:, -num_last_tokens:] if num_last_tokens > 0 else hidden
        return namedtuple("CausalLMOutput", ["logits"])(logits=self.lm_head(hidden))


def _norm(width: int, eps: float) -> RMSNorm:
    norm = RMSNorm(width, eps)
    norm.register_parameter("bias", None)
    return norm


for forward in (Mamba2.forward, Block.forward):
    forward.__module__ = "mamba_ssm.like"  # `attach` takes code of mamba-ssm only

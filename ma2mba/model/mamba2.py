"""A Mamba-2 layer, with the parameter names of state-spaces/mamba.

B batch, T tokens, D model width, I inner width (heads * head width), H heads, P head width, N state size,
V channels of the convolution (I + 2 head groups * N), W taps of the convolution less one.
"""

import math

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ma2mba.model.layer import LayerFlops, LayerStep, RecurrentLayer, State
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.norm import RMSNorm
from ma2mba.ops import LayerShape, LayerWeights, mamba2_layer, mamba2_layer_product, most_tokens, open_step, selftest

BEYOND_A_BLOCK = 44
"""Tokens after the first block in the comparison of kernels: the second block is not full."""


class Mamba2Mixer(nn.Module):
    """The parameters of the Mamba-2 mixer (arXiv 2405.21060, figure 6): projections, convolution, SSD, gated norm."""

    kept_in_fp32 = ("A_log", "dt_bias", "D")
    """Loaded in fp32 into a model of bf16, as state-spaces/mamba keeps them: rounding them changes how long a head
    remembers (docs/performance.md)."""

    def __init__(self, config: Mamba2Config):
        super().__init__()
        self.config = config
        heads, inner = config.heads, config.d_inner
        self.in_proj = nn.Linear(config.d_model, inner + config.conv_width + heads, bias=False)
        self.conv1d = nn.Conv1d(config.conv_width, config.conv_width, config.d_conv, groups=config.conv_width)
        # As state-spaces/mamba initialises them: step sizes log-uniform in [0.001, 0.1].
        dt = torch.exp(torch.rand(heads) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp(min=1e-4)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(_draw_log_rates(config))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = RMSNorm(inner, config.norm_eps)
        self.out_proj = nn.Linear(inner, config.d_model, bias=False)


def _draw_log_rates(config: Mamba2Config) -> Tensor:
    """Draw the logarithm of the decay rate A of each head, A_log_H."""
    if config.A_log_uniform is None:
        return torch.empty(config.heads).uniform_(1, 16).log()
    low, high = config.A_log_uniform
    return torch.empty(config.heads).uniform_(math.log(low), math.log(high))


class Mamba2Layer(RecurrentLayer):
    """Norm, mixer, residual."""

    group: ProcessGroup | None = None
    """The ranks that take each step together; None: this process alone."""

    def __init__(self, config: Mamba2Config):
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = Mamba2Mixer(config)
        self.shape = LayerShape(config.headdim, config.ngroups, config.d_state, config.ssd_block, config.norm_eps)

    def forward(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        conv_BVW, ssm_BHPN = state
        x_BTD, *after = mamba2_layer(x_BTD, conv_BVW, ssm_BHPN, self.weights, self.shape, None, self.group)
        return x_BTD, tuple(after)

    def remember(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State, Tensor | None]:
        """As forward, without gradients. The memo (batch, tokens, width) is in the weights' dtype."""
        conv_BVW, ssm_BHPN = state
        x_BTD, *after, memo = mamba2_layer_product(x_BTD, conv_BVW, ssm_BHPN, self.weights, self.shape, self.group)
        return x_BTD, tuple(after), memo

    def recall(self, x_BTD: Tensor, state: State, memo: Tensor) -> tuple[Tensor, State]:
        """As forward, without the last projection: `memo` is its result."""
        conv_BVW, ssm_BHPN = state
        x_BTD, *after = mamba2_layer(x_BTD, conv_BVW, ssm_BHPN, self.weights, self.shape, memo, self.group)
        return x_BTD, tuple(after)

    @property
    def weights(self) -> LayerWeights:
        m = self.mixer
        assert m.conv1d.bias is not None
        return LayerWeights(
            norm_D=self.norm.weight,
            in_proj_XD=m.in_proj.weight,
            conv_V1W=m.conv1d.weight,
            conv_bias_V=m.conv1d.bias,
            dt_bias_H=m.dt_bias,
            A_log_H=m.A_log,
            D_H=m.D,
            gated_norm_I=m.norm.weight,
            out_proj_DI=m.out_proj.weight,
        )

    def initial_state(self, x_BTD: Tensor) -> State:
        """Return zeros: the last inputs of the convolution (batch, channels, taps - 1) in the weights' dtype, and the
        state of the scan (batch, heads, head width, state size) in fp32 or wider.

        Channels are contiguous in memory, as the kernels need them.
        """
        w, shape, batch = self.weights, self.shape, x_BTD.shape[0]
        channels, _, taps = w.conv_V1W.shape
        high = torch.promote_types(w.in_proj_XD.dtype, torch.float32)
        return (
            w.in_proj_XD.new_zeros(batch, taps - 1, channels).transpose(1, 2),
            w.in_proj_XD.new_zeros(batch, len(w.D_H), shape.headdim, shape.d_state, dtype=high),
        )

    def flops(self) -> LayerFlops:
        """The scan is counted in blocks of `ssd_block` tokens (arXiv 2405.21060, section 6)."""
        w, shape = self.weights, self.shape
        inner = len(w.gated_norm_I)
        within = shape.block * (shape.ngroups * shape.d_state + inner)
        return LayerFlops(
            matrices=2.0 * (w.in_proj_XD.numel() + w.out_proj_DI.numel()),
            scan=2.0 * (within + 2 * shape.d_state * inner),
        )

    def open_step(self, rows: int) -> LayerStep:
        return open_step(self.weights, self.shape, rows)

    def longest_call(self, rows: int) -> int | None:
        return most_tokens(rows, len(self.weights.in_proj_XD), self.shape.block)

    def split(self, group: ProcessGroup) -> "Mamba2Layer":
        return _SplitMamba2Layer(self, group)

    @torch.no_grad()
    def scale_init(self, depth: int) -> None:
        """Divide the output projection by the square root of the depth, as state-spaces/mamba does."""
        self.mixer.out_proj.weight.div_(math.sqrt(depth))

    def check_kernels(self, device: torch.device) -> list[selftest.Row]:
        """Run one short chunk; takes seconds."""
        w, shape = self.weights, self.shape
        sizes = selftest.Sizes(
            width=len(w.norm_D),
            heads=len(w.D_H),
            headdim=shape.headdim,
            ngroups=shape.ngroups,
            d_state=shape.d_state,
            block=shape.block,
            taps=w.conv_V1W.shape[-1],
        )
        tokens = shape.block + BEYOND_A_BLOCK
        return selftest.attempt(
            "layer", f"{tokens} tokens", lambda: selftest.layer_results(device, sizes, tokens, batch=1)
        )


class _SplitMamba2Layer(Mamba2Layer):
    """A layer on this rank's slice of a chunk's tokens (`ma2mba.ops.sequence_parallel`)."""

    def __init__(self, layer: Mamba2Layer, group: ProcessGroup):
        nn.Module.__init__(self)
        self.norm, self.mixer, self.shape, self.group = layer.norm, layer.mixer, layer.shape, group

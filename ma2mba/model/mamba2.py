"""One Mamba-2 layer, a pure step `layer(x, state) -> (x, state)`, with the parameter names of state-spaces/mamba.

B batch, T tokens, D model width, I inner width (heads * head width), H heads, P head width, N state size,
V channels of the convolution (I + 2 groups N), W taps of the convolution less one.
"""

import math

import torch
from torch import Tensor, nn

from ma2mba.model.config import BackboneConfig
from ma2mba.ops import LayerShape, LayerWeights, mamba2_layer, mamba2_layer_product, rms_norm

State = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """Root mean square norm in fp32, returned in the dtype of the weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Mamba2Mixer(nn.Module):
    """The parameters of the Mamba-2 mixer (arXiv 2405.21060, figure 6): projections, convolution, SSD, gated norm."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        heads, inner = config.heads, config.d_inner
        self.in_proj = nn.Linear(config.d_model, inner + config.conv_width + heads, bias=False)
        self.conv1d = nn.Conv1d(config.conv_width, config.conv_width, config.d_conv, groups=config.conv_width)
        # As state-spaces/mamba initialises them: step sizes log-uniform in [0.001, 0.1], decays uniform in [1, 16].
        dt = torch.exp(torch.rand(heads) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp(min=1e-4)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = RMSNorm(inner, config.norm_eps)
        self.out_proj = nn.Linear(inner, config.d_model, bias=False)


class Mamba2Layer(nn.Module):
    """Norm, mixer, residual. The residual stream stays in fp32 (or fp64) whatever the weights are in."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = Mamba2Mixer(config)
        self.shape = LayerShape(config.headdim, config.ngroups, config.d_state, config.ssd_block, config.norm_eps)

    def forward(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        """x (batch, tokens, width) and the state before its first token -> x after the layer and the state after it."""
        x_BTD, conv_BVW, ssm_BHPN = mamba2_layer(x_BTD, *state, self.weights, self.shape)
        return x_BTD, (conv_BVW, ssm_BHPN)

    def remember(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State, Tensor | None]:
        """As forward, without gradients, and a memo (batch, tokens, width) in the weights' dtype that `recall` uses."""
        x_BTD, conv_BVW, ssm_BHPN, memo = mamba2_layer_product(x_BTD, *state, self.weights, self.shape)
        return x_BTD, (conv_BVW, ssm_BHPN), memo

    def recall(self, x_BTD: Tensor, state: State, memo: Tensor) -> tuple[Tensor, State]:
        """As forward, without the last projection: `memo` is what it gave."""
        x_BTD, conv_BVW, ssm_BHPN = mamba2_layer(x_BTD, *state, self.weights, self.shape, memo)
        return x_BTD, (conv_BVW, ssm_BHPN)

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
        """Zeros: (batch, channels, taps - 1) in the weights' dtype, channels neighbours in memory as kernels want them,
        and (batch, heads, head width, state size) fp32."""
        c, weight = self.mixer.config, self.mixer.in_proj.weight
        high = torch.promote_types(weight.dtype, torch.float32)
        batch = x_BTD.shape[0]
        return (
            weight.new_zeros(batch, c.d_conv - 1, c.conv_width).transpose(1, 2),
            weight.new_zeros(batch, c.heads, c.headdim, c.d_state, dtype=high),
        )

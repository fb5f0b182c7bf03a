"""A backbone layer and a vision encoder of your own: everything that adding them takes (docs/extending.md).

B batch, T tokens, D model width, N frames, H and W pixels, K tokens of a frame.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from ma2mba.model.base_config import BackboneConfig, VisionConfig
from ma2mba.model.layer import LayerFlops, RecurrentLayer, State
from ma2mba.model.norm import RMSNorm
from ma2mba.model.registry import register_backbone, register_vision_encoder
from ma2mba.model.vision import VisionEncoder, VisionFlops


class GatedConfig(BackboneConfig):
    layer: Literal["gated"] = "gated"
    gate_bias: float = 2.0


class GatedLayer(RecurrentLayer):
    """A gated linear recurrence: h_t = g_t h_{t-1} + (1 - g_t) u_t, and a residual."""

    def __init__(self, config: GatedConfig):
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.inputs = nn.Linear(config.d_model, 2 * config.d_model)
        self.output = nn.Linear(config.d_model, config.d_model, bias=False)
        self.gate_bias = config.gate_bias

    def forward(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        (h_BD,) = state
        u_BTD, gate_BTD = self.inputs(self.norm(x_BTD)).to(h_BD.dtype).chunk(2, dim=-1)
        hidden = []
        for u_BD, gate_BD in zip(u_BTD.unbind(1), (gate_BTD + self.gate_bias).sigmoid().unbind(1), strict=True):
            h_BD = torch.lerp(u_BD, h_BD, gate_BD)
            hidden.append(h_BD)
        h_BTD = torch.stack(hidden, dim=1) if hidden else u_BTD
        return x_BTD + self.output(h_BTD.to(self.output.weight.dtype)), (h_BD,)

    def initial_state(self, x_BTD: Tensor) -> State:
        weight = self.output.weight
        return (weight.new_zeros(len(x_BTD), len(weight), dtype=torch.promote_types(weight.dtype, torch.float32)),)

    def flops(self) -> LayerFlops:
        return LayerFlops(matrices=2.0 * (self.inputs.weight.numel() + self.output.weight.numel()), scan=0.0)


class PatchesConfig(VisionConfig):
    encoder: Literal["patches"] = "patches"
    image_size: int = 64
    patch_size: int = 32
    features: int = 48

    @property
    def tokens_per_frame(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def width(self) -> int:
        return self.features


class PatchesEncoder(VisionEncoder):
    """A linear map of every patch."""

    config: PatchesConfig

    def __init__(self, config: PatchesConfig):
        super().__init__(config)
        self.embedding = nn.Conv2d(3, config.features, config.patch_size, stride=config.patch_size)

    def forward(self, frames_N3HW: Tensor) -> Tensor:
        pixels_N3HW = (frames_N3HW / 255).to(self.embedding.weight.dtype)
        return self.embedding(pixels_N3HW).flatten(2).transpose(1, 2)

    def flops(self) -> VisionFlops:
        return VisionFlops(pixels=2.0 * self.config.tokens_per_frame * self.embedding.weight.numel(), rest=0.0)


register_backbone("gated", GatedConfig, GatedLayer)
register_vision_encoder("patches", PatchesConfig, PatchesEncoder)

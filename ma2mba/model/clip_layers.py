"""The layers of a CLIP vision tower, with the parameter names of transformers' CLIPVisionModel.

They are not transformers' own, because importing its model classes takes seconds, each time a model is loaded.

N frames, H and W pixels, P patches and one class token, A heads, V width.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ma2mba.model.clip_config import ClipConfig

ACTIVATIONS = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
"""What `ClipConfig.hidden_act` names, under the names of transformers."""


class ClipTower(nn.Module):
    """Pixels -> hidden states after the last layer (`transformers.models.clip.modeling_clip`)."""

    def __init__(self, config: ClipConfig, *, complete: bool = False):
        """Without `complete`, the last layer and the norm after it are not built."""
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        layers = config.num_hidden_layers - (not complete)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(_Layer(config) for _ in range(layers))})
        if complete:
            self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels_N3HW: Tensor) -> Tensor:
        """Return x_NPV, the class token first."""
        x_NPV = self.pre_layrnorm(self.embeddings(pixels_N3HW))
        for layer in cast(nn.ModuleList, self.encoder["layers"]):
            x_NPV = layer(x_NPV)
        return x_NPV


class _Embeddings(nn.Module):
    def __init__(self, config: ClipConfig):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding(config.patches_per_side**2 + 1, width)
        nn.init.normal_(self.patch_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, pixels_N3HW: Tensor) -> Tensor:
        patches_NPV = self.patch_embedding(pixels_N3HW).flatten(2).transpose(1, 2)
        class_N1V = self.class_embedding.expand(len(pixels_N3HW), 1, -1)
        return torch.cat((class_N1V, patches_NPV), dim=1) + self.position_embedding.weight


class _Layer(nn.Module):
    def __init__(self, config: ClipConfig):
        super().__init__()
        self.self_attn = _Attention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _Mlp(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_NPV: Tensor) -> Tensor:
        x_NPV = x_NPV + self.self_attn(self.layer_norm1(x_NPV))
        return x_NPV + self.mlp(self.layer_norm2(x_NPV))


class _Attention(nn.Module):
    def __init__(self, config: ClipConfig):
        super().__init__()
        width, inner = config.hidden_size, (2 * config.num_hidden_layers) ** -0.5
        self.heads = config.num_attention_heads
        self.k_proj, self.v_proj, self.q_proj = (_linear(width, width, width**-0.5 * inner) for _ in range(3))
        self.out_proj = _linear(width, width, width**-0.5)

    def forward(self, x_NPV: Tensor) -> Tensor:
        q, k, v = (
            projection(x_NPV).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        y_NAPV = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(y_NAPV.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, config: ClipConfig):
        super().__init__()
        width, inner = config.hidden_size, (2 * config.num_hidden_layers) ** -0.5
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = _linear(width, config.intermediate_size, (2 * width) ** -0.5)
        self.fc2 = _linear(config.intermediate_size, width, width**-0.5 * inner)

    def forward(self, x_NPV: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x_NPV)))


def _linear(inputs: int, outputs: int, std: float) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
    return linear

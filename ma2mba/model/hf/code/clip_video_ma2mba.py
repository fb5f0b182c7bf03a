"""The CLIP vision encoder up to its penultimate layer, its patches pooled to a quarter. Parameter names are CLIP's.

N frames, H and W pixels, P patches and one class token, K tokens of a frame, V vision width, A attention heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_video_ma2mba import VideoMa2mbaVisionConfig


class VideoMa2mbaClipEmbeddings(nn.Module):
    def __init__(self, config: VideoMa2mbaVisionConfig):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(config.patches_per_side**2 + 1, width)
        self.mean, self.std = config.image_mean, config.image_std

    def forward(self, frames_N3HW: Tensor) -> Tensor:
        """Return x_NPV of frames in uint8."""
        dtype = self.class_embedding.dtype
        scale_2311 = frames_N3HW.new_tensor([self.mean, self.std], dtype=torch.float32)[..., None, None]
        mean_311, std_311 = scale_2311.to(torch.promote_types(dtype, torch.float32))
        pixels_N3HW = (frames_N3HW.to(torch.float32) / 255 - mean_311) / std_311
        patches_NPV = self.patch_embedding(pixels_N3HW.to(dtype)).flatten(2).transpose(1, 2)
        first_N1V = self.class_embedding.to(patches_NPV.dtype).expand(len(patches_NPV), 1, -1)
        x_NPV = torch.cat([first_N1V, patches_NPV], dim=1)
        return x_NPV + self.position_embedding(torch.arange(x_NPV.shape[1], device=x_NPV.device))


class VideoMa2mbaClipAttention(nn.Module):
    def __init__(self, config: VideoMa2mbaVisionConfig):
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x_NPV: Tensor) -> Tensor:
        q, k, v = (
            p(x_NPV).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VideoMa2mbaClipMLP(nn.Module):
    def __init__(self, config: VideoMa2mbaVisionConfig):
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_NPV: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x_NPV)))


class VideoMa2mbaClipLayer(GradientCheckpointingLayer):
    def __init__(self, config: VideoMa2mbaVisionConfig):
        super().__init__()
        self.self_attn = VideoMa2mbaClipAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VideoMa2mbaClipMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_NPV: Tensor) -> Tensor:
        x_NPV = x_NPV + self.self_attn(self.layer_norm1(x_NPV))
        return x_NPV + self.mlp(self.layer_norm2(x_NPV))


class VideoMa2mbaClipEncoder(nn.Module):
    """All layers but the last, which nothing reads."""

    def __init__(self, config: VideoMa2mbaVisionConfig):
        super().__init__()
        self.layers = nn.ModuleList(VideoMa2mbaClipLayer(config) for _ in range(config.num_hidden_layers - 1))

    def forward(self, x_NPV: Tensor) -> Tensor:
        for layer in self.layers:
            x_NPV = layer(x_NPV)
        return x_NPV


class VideoMa2mbaClip(nn.Module):
    def __init__(self, config: VideoMa2mbaVisionConfig):
        super().__init__()
        self.embeddings = VideoMa2mbaClipEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = VideoMa2mbaClipEncoder(config)

    def forward(self, frames_N3HW: Tensor) -> Tensor:
        return self.encoder(self.pre_layrnorm(self.embeddings(frames_N3HW)))


class VideoMa2mbaVision(nn.Module):
    """Penultimate layer, class token dropped, 2x2 bilinear pooling (paper, section 4)."""

    def __init__(self, config: VideoMa2mbaVisionConfig):
        super().__init__()
        self.side = config.patches_per_side
        self.clip = VideoMa2mbaClip(config)

    def forward(self, frames_N3HW: Tensor) -> Tensor:
        """uint8 (N, 3, image_size, image_size) -> visual tokens x_NKV."""
        x_NVHW = self.clip(frames_N3HW)[:, 1:].transpose(1, 2).unflatten(-1, (self.side, self.side))
        half = -(-self.side // 2)
        return F.interpolate(x_NVHW, size=(half, half), mode="bilinear").flatten(2).transpose(1, 2)


class VideoMa2mbaProjector(nn.Sequential):
    """From the width of the vision encoder to the width of the language model."""

    def __init__(self, vision_width: int, model_width: int):
        super().__init__(nn.Linear(vision_width, model_width), nn.GELU(), nn.Linear(model_width, model_width))

"""The vision encoder: transformers' CLIPVisionModel up to its penultimate layer, its patches pooled to a quarter.

N frames, C colours, H and W pixels, P patches and one class token, K tokens of a frame, V vision width.
"""

import json
from typing import Any

import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.utils import cached_file

from ma2mba.errors import UserError
from ma2mba.model.config import CLIP_MEAN, CLIP_STD, VisionConfig


class VisionEncoder(nn.Module):
    """Frames -> visual tokens (paper, section 4): penultimate layer, class token dropped, 2x2 bilinear pooling.

    The last layer and the norm behind it are never built, as nothing reads them: every parameter here gets a gradient.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        fields = config.model_dump(exclude={"image_mean", "image_std", "num_hidden_layers"})
        self.clip = _cut(CLIPVisionModel(CLIPVisionConfig(**fields, num_hidden_layers=config.num_hidden_layers)))
        self.register_buffer("mean_C11", torch.tensor(config.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(config.image_std).view(3, 1, 1), persistent=False)

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        """uint8 (frames, 3, image_size, image_size) -> visual tokens (frames, tokens_per_frame, hidden_size)."""
        weight = self.clip.embeddings.patch_embedding.weight
        pixels_NCHW = ((frames_NCHW.to(torch.float32) / 255 - self.mean_C11) / self.std_C11).to(weight.dtype)
        x_NPV = self.clip(pixel_values=pixels_NCHW).last_hidden_state[:, 1:]
        side = self.config.patches_per_side
        x_NVHW = x_NPV.transpose(1, 2).unflatten(-1, (side, side))
        half = -(-side // 2)
        return F.interpolate(x_NVHW, size=(half, half), mode="bilinear").flatten(2).transpose(1, 2)


def load_clip(source: str) -> VisionEncoder:
    """A CLIP-shaped encoder with its weights, from a folder or the name of a hub repository.

    Raises UserError when there is no such encoder, or its weights are not in safetensors.
    """
    try:
        clip = CLIPVisionModel.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source}: cannot be loaded as a CLIP vision encoder ({str(error).strip().splitlines()[0]}); "
            "name a hub repository or a folder with config.json and model.safetensors"
        ) from error
    names = VisionConfig.model_fields.keys() - {"image_mean", "image_std"}
    fields: dict[str, Any] = {name: getattr(clip.config, name) for name in names}
    encoder = VisionEncoder(VisionConfig(**fields, **_normalisation(source)))
    encoder.clip = _cut(clip)
    return encoder


def fingerprint(encoder: VisionEncoder) -> str:
    """Names the encoder by its shape and its weights, rounded to bf16, as a run in bf16 rounds them."""
    digest = xxhash.xxh3_128(encoder.config.model_dump_json().encode())
    for name, weight in sorted(encoder.state_dict().items()):
        bits = weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
        digest.update(name.encode())
        digest.update(bits.numpy())
    return digest.hexdigest()


def _cut(clip: CLIPVisionModel) -> CLIPVisionModel:
    del clip.encoder.layers[-1]
    clip.post_layernorm = nn.Identity()  # type: ignore[assignment]
    return clip


def _normalisation(source: str) -> dict[str, Any]:
    path = cached_file(source, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    if path is None:
        return {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    with open(path, encoding="utf-8") as file:
        values = json.load(file)
    return {"image_mean": values.get("image_mean", CLIP_MEAN), "image_std": values.get("image_std", CLIP_STD)}

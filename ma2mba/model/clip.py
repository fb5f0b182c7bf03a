"""A CLIP vision encoder: a vision tower up to its penultimate layer, its patches pooled to a quarter.

N frames, H and W pixels, P patches and one class token, K tokens of a frame, V vision width.
"""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from ma2mba.errors import UserError
from ma2mba.files import inside
from ma2mba.model.clip_config import PREPROCESSOR, ClipConfig
from ma2mba.model.clip_layers import ClipTower
from ma2mba.model.empty import build_empty, on_meta, parameters_on_meta, require_memory
from ma2mba.model.vision import VisionEncoder, VisionFlops
from ma2mba.model.weights import INDEX, WEIGHTS, is_finite, open_weights


class ClipEncoder(VisionEncoder):
    """Penultimate layer, class token dropped, 2x2 bilinear pooling (paper, section 4).

    The last layer and the norm after it are not built, because nothing reads them. All parameters get a gradient.
    """

    config: ClipConfig
    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, config: ClipConfig):
        super().__init__(config)
        self.clip = ClipTower(config)
        self.register_buffer("mean_C11", torch.tensor(config.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(config.image_std).view(3, 1, 1), persistent=False)

    def forward(self, frames_N3HW: Tensor) -> Tensor:
        weight = self.clip.embeddings.patch_embedding.weight
        pixels_N3HW = ((frames_N3HW.to(torch.float32) / 255 - self.mean_C11) / self.std_C11).to(weight.dtype)
        x_NPV = self.clip(pixels_N3HW)[:, 1:]
        side = self.config.patches_per_side
        x_NVHW = x_NPV.transpose(1, 2).unflatten(-1, (side, side))
        half = -(-side // 2)
        return F.interpolate(x_NVHW, size=(half, half), mode="bilinear").flatten(2).transpose(1, 2)

    def flops(self) -> VisionFlops:
        c = self.config
        tokens, width = c.patches_per_side**2 + 1, c.hidden_size
        layer = tokens * (4 * width * width + 2 * width * c.intermediate_size) + 2 * tokens * tokens * width
        patches = 2.0 * c.patches_per_side**2 * 3 * c.patch_size**2 * width
        return VisionFlops(pixels=patches, rest=2.0 * (c.num_hidden_layers - 1) * layer)

    @classmethod
    def load(cls, source: str) -> Self:
        """Read a folder, or download a hub repository. The weights must be in safetensors. Runs no code of either."""
        if not Path(source).is_dir():
            return cls._download(source)
        folder = Path(source)

        def file_in(name: str) -> Path:
            return inside(folder, name, folder)

        if not any(file_in(name).exists() for name in (WEIGHTS, INDEX)):
            raise UserError(
                f"{folder}: has no {WEIGHTS}. Give a hub repository or a folder with config.json and {WEIGHTS}"
            )
        config = ClipConfig.of_files(file_in("config.json"), file_in(PREPROCESSOR))
        weights = open_weights(file_in).renamed(lambda name: "clip." + name.removeprefix("vision_model."))
        outline = on_meta(lambda: cls(config), weights, file_in("config.json"))
        weights.require(outline, extra=True)
        require_memory(outline, "cpu", weights.path, torch.float32)
        encoder = build_empty(lambda: cls(config))
        weights.copy_into(encoder)
        return encoder

    @classmethod
    def _download(cls, source: str) -> Self:
        from transformers import CLIPVisionConfig, CLIPVisionModel
        from transformers.utils import cached_file

        try:
            config = ClipConfig.of_files(Path(str(cached_file(source, "config.json"))), _preprocessor(source))
            with parameters_on_meta():
                encoder = cls(config)
            # With our own configuration, no key of the repository's config.json chooses code or other weights.
            loaded: Any = CLIPVisionModel.from_pretrained(
                source,
                config=CLIPVisionConfig(**config.model_dump(exclude={"image_mean", "image_std"})),
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{source}: cannot be loaded as a CLIP vision encoder ({str(error).strip().splitlines()[0]}). "
                "Give a hub repository or a folder with config.json and model.safetensors"
            ) from error
        clip, about = loaded
        found, wanted = clip.state_dict(), encoder.clip.state_dict().keys()
        missing = sorted(wanted & about["missing_keys"])
        broken = [name for name in wanted if not is_finite(found[name])]
        if missing or broken:
            reason = f"has no {missing[0]}" if missing else f"the tensor {broken[0]} has NaN or infinite values"
            raise UserError(f"{source}: {reason}. Give another vision encoder")
        encoder.clip.load_state_dict({name: found[name] for name in wanted}, assign=True)
        return encoder


def _preprocessor(source: str) -> Path | None:
    from transformers.utils import cached_file

    path = cached_file(source, PREPROCESSOR, _raise_exceptions_for_missing_entries=False)
    return Path(path) if path else None

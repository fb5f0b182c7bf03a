"""The configuration of a CLIP vision encoder. In a file of its own, because it must not import torch."""

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from ma2mba.errors import UserError
from ma2mba.model.base_config import VisionConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PREPROCESSOR = "preprocessor_config.json"


class ClipConfig(VisionConfig):
    """The fields of transformers' CLIPVisionConfig, and the normalisation of pixels. The default is ViT-L/14-336."""

    LAST = ("image_size", "patch_size", "hidden_act", "layer_norm_eps", "image_mean", "image_std")

    encoder: Literal["clip"] = "clip"
    hidden_size: PositiveInt = 1024
    intermediate_size: PositiveInt = 4096
    num_hidden_layers: PositiveInt = Field(default=24, ge=2)
    num_attention_heads: PositiveInt = 16
    image_size: PositiveInt = 336
    patch_size: PositiveInt = 14
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD

    @property
    def width(self) -> int:
        return self.hidden_size

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def tokens_per_frame(self) -> int:
        return (-(-self.patches_per_side // 2)) ** 2

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self

    @classmethod
    def of_published(cls, source: str) -> Self:
        """Read the config.json of a CLIP folder.

        Return ViT-L/14-336 for the name of a hub repository: this method downloads nothing.
        """
        path = Path(source) / "config.json"
        if not path.is_file():
            return cls()
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            values = values.get("vision_config", values)
            fields = {name: values[name] for name in cls.model_fields if name in values}
            return cls(**fields, **normalisation(path.with_name(PREPROCESSOR)))
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path}: cannot be read as the config.json of a CLIP vision encoder ({error})") from error


def normalisation(preprocessor: Path | None) -> dict[str, Any]:
    """Return `image_mean` and `image_std` of a preprocessor_config.json, and CLIP's own where a value is missing."""
    values = json.loads(preprocessor.read_text(encoding="utf-8")) if preprocessor and preprocessor.is_file() else {}
    return {"image_mean": values.get("image_mean", CLIP_MEAN), "image_std": values.get("image_std", CLIP_STD)}

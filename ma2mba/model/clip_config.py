"""The configuration of a CLIP vision encoder. In a file of its own, because it must not import torch."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, ValidationError, model_validator

from ma2mba.errors import UserError
from ma2mba.files import inside
from ma2mba.model.base_config import Pixels, Size, VisionConfig, problem
from ma2mba.text import RECIPE_BYTES, brief, read_json

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PREPROCESSOR = "preprocessor_config.json"


class ClipConfig(VisionConfig):
    """The fields of transformers' CLIPVisionConfig, and the normalisation of pixels. The default is ViT-L/14-336."""

    LAST = ("image_size", "patch_size", "hidden_act", "layer_norm_eps", "image_mean", "image_std")

    encoder: Literal["clip"] = "clip"
    hidden_size: Size = 1024
    intermediate_size: Size = 4096
    num_hidden_layers: Annotated[int, Field(ge=2, le=1000)] = 24
    num_attention_heads: Size = 16
    image_size: Pixels = 336
    patch_size: Pixels = 14
    hidden_act: Literal["quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"] = "quick_gelu"
    layer_norm_eps: NonNegativeFloat = 1e-5
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = CLIP_STD

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
        path = inside(Path(source), "config.json", source)
        return cls.of_files(path, inside(Path(source), PREPROCESSOR, source)) if path.is_file() else cls()

    @classmethod
    def of_files(cls, path: Path, preprocessor: Path | None) -> Self:
        """Read a config.json, and the preprocessor_config.json if it exists. Raise UserError if one cannot be read."""
        values = read_json(path, RECIPE_BYTES)
        try:
            if not str(values.get("model_type", "clip")).startswith("clip"):
                raise TypeError(f"model_type is {brief(values['model_type'])}")
            values = values.get("vision_config", values)
            fields = {name: values[name] for name in cls.model_fields if name in values}
            return cls(**fields, **normalisation(preprocessor))
        except (AttributeError, TypeError, ValidationError) as error:
            reason = problem(error) if isinstance(error, ValidationError) else error
            raise UserError(f"{path}: cannot be read as the config.json of a CLIP vision encoder ({reason})") from error


def normalisation(preprocessor: Path | None) -> dict[str, Any]:
    """Return `image_mean` and `image_std` of a preprocessor_config.json, and CLIP's own where a value is missing."""
    values = read_json(preprocessor, RECIPE_BYTES) if preprocessor and preprocessor.exists() else {}
    return {"image_mean": values.get("image_mean", CLIP_MEAN), "image_std": values.get("image_std", CLIP_STD)}

"""What a model is made of: read from `config.json`, and from recipes for a model that starts from scratch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneConfig(_Config):
    """Mamba-2 (DESIGN: 370m is 48 layers of 1,024, 1.3b 48 of 2,048, 2.7b 64 of 2,560)."""

    d_model: PositiveInt
    n_layer: PositiveInt
    d_state: PositiveInt = 128
    headdim: PositiveInt = 64
    expand: PositiveInt = 2
    d_conv: PositiveInt = 4
    ngroups: PositiveInt = 1
    ssd_block: PositiveInt = 256
    vocab_size: PositiveInt = 50277
    pad_vocab_size_multiple: PositiveInt = 16
    norm_eps: float = 1e-5

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def heads(self) -> int:
        return self.d_inner // self.headdim

    @property
    def conv_width(self) -> int:
        return self.d_inner + 2 * self.ngroups * self.d_state

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple

    @model_validator(mode="after")
    def _divides(self) -> "BackboneConfig":
        if self.d_inner % self.headdim:
            raise ValueError(f"expand * d_model = {self.d_inner} is not a multiple of headdim = {self.headdim}")
        if self.heads % self.ngroups:
            raise ValueError(f"{self.heads} heads cannot be shared out to ngroups = {self.ngroups}")
        return self


class VisionConfig(_Config):
    """A CLIP-shaped vision encoder; the fields are those of transformers' CLIPVisionConfig."""

    hidden_size: PositiveInt = 1024
    intermediate_size: PositiveInt = 4096
    num_hidden_layers: PositiveInt = Field(24, ge=2)
    num_attention_heads: PositiveInt = 16
    image_size: PositiveInt = 336
    patch_size: PositiveInt = 14
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def tokens_per_frame(self) -> int:
        return (-(-self.patches_per_side // 2)) ** 2

    @model_validator(mode="after")
    def _divides(self) -> "VisionConfig":
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} cannot be shared by {self.num_attention_heads} heads")
        return self


class ModelConfig(_Config):
    """`config.json` of a Video-Ma2mba model folder."""

    architecture: Literal["video_ma2mba"] = "video_ma2mba"
    format_version: Literal[1] = 1
    language_model: BackboneConfig
    vision: VisionConfig

    @property
    def tokens_per_frame(self) -> int:
        return self.vision.tokens_per_frame

    @property
    def image_size(self) -> int:
        return self.vision.image_size

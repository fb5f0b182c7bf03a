"""The configuration of a model: `config.json`, and `model` in a recipe that trains a new model. Imports no torch."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import SerializeAsAny, ValidationError, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from ma2mba.model.base_config import DEFAULT_ENCODER, DEFAULT_LAYER, BackboneConfig, StrictConfig, VisionConfig
from ma2mba.model.registry import BACKBONES, VISION_ENCODERS, Registry


class ModelConfig(StrictConfig):
    """`config.json` of a Video-Ma2mba model folder."""

    architecture: Literal["video_ma2mba"] = "video_ma2mba"
    format_version: Literal[1] = 1
    language_model: SerializeAsAny[BackboneConfig]
    vision: SerializeAsAny[VisionConfig]

    @field_validator("language_model", mode="before")
    @classmethod
    def _choose_backbone(cls, value: Any) -> Any:
        return _choose(BACKBONES, DEFAULT_LAYER, value)

    @field_validator("vision", mode="before")
    @classmethod
    def _choose_encoder(cls, value: Any) -> Any:
        return _choose(VISION_ENCODERS, DEFAULT_ENCODER, value)

    @property
    def tokens_per_frame(self) -> int:
        return self.vision.tokens_per_frame

    @property
    def image_size(self) -> int:
        return self.vision.image_size


def _choose(registry: Registry, default: str, value: Any) -> Any:
    """Validate a mapping with the class that its name chooses. pydantic adds the key before the errors' keys."""
    if not isinstance(value, Mapping):
        return value
    name = value.get(registry.key, default)
    try:
        config = registry.config(str(name))
    except ValueError as error:
        kind = PydanticCustomError("unknown_name", "{reason}", {"reason": str(error)})
        details = InitErrorDetails(type=kind, loc=(registry.key,), input=name)
        raise ValidationError.from_exception_data("config", [details]) from error
    return config.model_validate(value)

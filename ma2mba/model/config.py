"""The configuration of a model, and `model` in a recipe that trains a new model. Imports no torch.

A model folder's `config.json` holds it in the form that transformers reads (`ma2mba/model/hf/config.py`). Folders of
format 1 hold it as it is.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, SerializeAsAny, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from ma2mba.model.base_config import DEFAULT_ENCODER, DEFAULT_LAYER, BackboneConfig, StrictConfig, VisionConfig
from ma2mba.model.registry import BACKBONES, VISION_ENCODERS, Registry


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


Backbone = Annotated[
    SerializeAsAny[BackboneConfig], BeforeValidator(lambda value: _choose(BACKBONES, DEFAULT_LAYER, value))
]
Encoder = Annotated[
    SerializeAsAny[VisionConfig], BeforeValidator(lambda value: _choose(VISION_ENCODERS, DEFAULT_ENCODER, value))
]


class ModelConfig(StrictConfig):
    """A Video-Ma2mba model. The first two fields are those of a `config.json` of format 1."""

    architecture: Literal["video_ma2mba"] = "video_ma2mba"
    format_version: Literal[1] = 1
    language_model: Backbone
    vision: Encoder

    @property
    def tokens_per_frame(self) -> int:
        return self.vision.tokens_per_frame

    @property
    def image_size(self) -> int:
        return self.vision.image_size

"""The configuration of a model: `config.json`, and `model` in a recipe that trains a new model. Imports no torch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    PositiveInt,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from ma2mba.errors import UserError
from ma2mba.model.registry import BACKBONES, DEFAULT_ENCODER, DEFAULT_LAYER, VISION_ENCODERS, Registry


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Named(_Config):
    """A configuration that a registry finds by its field KEY."""

    KEY: ClassVar[str]
    DEFAULT: ClassVar[str]
    LAST: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the default's name and write LAST at the end: as every existing config.json is written."""
        values = handler(self)
        if values.get(self.KEY) == self.DEFAULT:
            del values[self.KEY]
        return values | {name: values.pop(name) for name in self.LAST if name in values}

    @classmethod
    def of_published(cls, source: str) -> Self:
        """Return the configuration of published weights, read without the weights.

        `source` is what `init_from` gives. Raises UserError if it cannot be read.
        """
        raise UserError(f"{source}: {cls.__name__} does not read published weights; describe the model under `model`")


class BackboneConfig(_Named):
    """What every language model has. A subclass adds the fields of its layer and declares its name:
    `layer: Literal["NAME"] = "NAME"`."""

    KEY, DEFAULT, LAST = "layer", DEFAULT_LAYER, ("vocab_size", "pad_vocab_size_multiple", "norm_eps")

    layer: str
    d_model: PositiveInt
    n_layer: PositiveInt
    vocab_size: PositiveInt = 50277
    pad_vocab_size_multiple: PositiveInt = 16
    norm_eps: float = 1e-5

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple


class VisionConfig(_Named):
    """What every vision encoder has. A subclass adds its fields, the two properties, and declares its name:
    `encoder: Literal["NAME"] = "NAME"`. Frames are square, `image_size` pixels wide."""

    KEY, DEFAULT = "encoder", DEFAULT_ENCODER

    encoder: str
    image_size: PositiveInt

    @property
    def tokens_per_frame(self) -> int:
        raise NotImplementedError

    @property
    def width(self) -> int:
        """The size of a visual token, which the projector reads."""
        raise NotImplementedError


class ModelConfig(_Config):
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

"""What every backbone's and every vision encoder's configuration has. Imports no torch."""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    SerializerFunctionWrapHandler,
    StrictBool,
    ValidationError,
    model_serializer,
)

from ma2mba.errors import UserError
from ma2mba.text import shorten

DEFAULT_LAYER, DEFAULT_ENCODER = "mamba2", "clip"
"""The names that a configuration need not give. A `config.json` does not hold them either."""


Size = Annotated[int, Field(gt=0, le=1 << 20)]
"""A width or a number of something. The bound keeps products of sizes below 2^63."""
Layers = Annotated[int, Field(gt=0, le=1000)]
Pixels = Annotated[int, Field(gt=0, le=8192)]


def problem(error: ValidationError) -> str:
    """Return the first key that is wrong and what is wrong with it, on one line."""
    first = error.errors()[0]
    text = f"{'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}"
    return shorten(" ".join(text.split()), 300)


class StrictConfig(BaseModel):
    """A configuration that refuses unknown keys, and numbers that are NaN or infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NamedConfig(StrictConfig):
    """A configuration that a registry finds by its field KEY."""

    KEY: ClassVar[str]
    DEFAULT: ClassVar[str]
    LAST: ClassVar[tuple[str, ...]] = ()
    UNWRITTEN: ClassVar[dict[str, Any]] = {}

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the default's name and the values in UNWRITTEN, and write LAST at the end: as every existing
        config.json is written."""
        unwritten = {self.KEY: self.DEFAULT} | self.UNWRITTEN
        values = {name: v for name, v in handler(self).items() if name not in unwritten or v != unwritten[name]}
        return values | {name: values.pop(name) for name in self.LAST if name in values}

    @classmethod
    def of_published(cls, source: str) -> Self:
        """Return the configuration of published weights, read without the weights.

        `source` is what `init_from` gives. Raises UserError if it cannot be read.
        """
        raise UserError(f"{source}: {cls.__name__} does not read published weights. Describe the model under `model`")


class BackboneConfig(NamedConfig):
    """What every language model has. A subclass adds the fields of its layer and declares its name:
    `layer: Literal["NAME"] = "NAME"`. With `tie_embeddings` the head is the embedding."""

    KEY, DEFAULT = "layer", DEFAULT_LAYER
    LAST = ("vocab_size", "pad_vocab_size_multiple", "norm_eps", "tie_embeddings")
    UNWRITTEN: ClassVar[dict[str, Any]] = {"tie_embeddings": True}

    layer: str
    d_model: Size
    n_layer: Layers
    vocab_size: Size = 50277
    pad_vocab_size_multiple: Size = 16
    norm_eps: NonNegativeFloat = 1e-5
    tie_embeddings: StrictBool = True

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple


class VisionConfig(NamedConfig):
    """What every vision encoder has. A subclass adds its fields, the two properties, and declares its name:
    `encoder: Literal["NAME"] = "NAME"`. Frames are square, `image_size` pixels wide."""

    KEY, DEFAULT = "encoder", DEFAULT_ENCODER

    encoder: str
    image_size: Pixels

    @property
    @abstractmethod
    def tokens_per_frame(self) -> int:
        """The number of visual tokens of a frame."""

    @property
    @abstractmethod
    def width(self) -> int:
        """The size of a visual token, which the projector reads."""

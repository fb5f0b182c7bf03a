"""`config.json` of a model folder of format 2: a `ModelConfig` as transformers reads it. Imports no torch."""

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, model_validator

from ma2mba.model.base_config import DEFAULT_ENCODER, DEFAULT_LAYER, StrictConfig
from ma2mba.model.config import Backbone, Encoder, ModelConfig
from ma2mba.model.registry import BACKBONES, VISION_ENCODERS, Registry

MODEL_TYPE, TEXT_TYPE, VISION_TYPE = "video_ma2mba", "video_ma2mba_text", "video_ma2mba_vision"
ARCHITECTURE = "VideoMa2mbaForConditionalGeneration"
AUTO_MAP = {
    "AutoConfig": "configuration_video_ma2mba.VideoMa2mbaConfig",
    "AutoModelForImageTextToText": f"modeling_video_ma2mba.{ARCHITECTURE}",
    "AutoModelForMultimodalLM": f"modeling_video_ma2mba.{ARCHITECTURE}",
}
OF_TRANSFORMERS = frozenset(
    {
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "is_encoder_decoder",
        "label2id",
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "tie_word_embeddings",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "transformers_weights",
        "use_cache",
    }
)
"""Keys that transformers writes by itself when it saves a configuration. They are accepted and have no effect."""


def _ours(model_type: str, registry: Registry, default: str) -> Callable[[Any], Any]:
    """Return a function that removes what transformers adds to a section of config.json. Keys of ours stay."""

    def without(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        if value.get("model_type", model_type) != model_type:
            raise ValueError(f"model_type is {str(value['model_type'])[:100]!r}, not {model_type!r}")
        try:
            fields: Collection[str] = registry.config(str(value.get(registry.key, default))).model_fields
        except ValueError:  # an unknown name: the next validator says so
            fields = ()
        return {
            key: v for key, v in value.items() if key in fields or (key not in OF_TRANSFORMERS and key != "model_type")
        }

    return without


class HfConfig(StrictConfig):
    """The keys of config.json that this package reads."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    model_type: Literal["video_ma2mba"]
    format_version: Literal[2] = 2
    tie_word_embeddings: bool = True
    video_token_id: int
    text_config: Annotated[Backbone, BeforeValidator(_ours(TEXT_TYPE, BACKBONES, DEFAULT_LAYER))]
    vision_config: Annotated[Encoder, BeforeValidator(_ours(VISION_TYPE, VISION_ENCODERS, DEFAULT_ENCODER))]

    @model_validator(mode="after")
    def _ties_alike(self) -> Self:
        if self.tie_word_embeddings != self.text_config.tie_embeddings:
            own = str(self.text_config.tie_embeddings).lower()
            raise ValueError(f"tie_word_embeddings is not {own}, but text_config.tie_embeddings is {own}")
        return self

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(language_model=self.text_config, vision=self.vision_config)


def has_code(config: ModelConfig) -> bool:
    """Return True if the modelling code of model folders can build this model: not one with a registered layer."""
    return (config.language_model.layer, config.vision.encoder) == (DEFAULT_LAYER, DEFAULT_ENCODER)


def is_hf(values: Any) -> bool:
    """Return True if the content of a config.json claims to be a configuration of format 2."""
    return isinstance(values, Mapping) and values.get("model_type") == MODEL_TYPE


def parse_hf(values: Mapping[str, Any]) -> HfConfig:
    """Return the configuration in a config.json. Raise pydantic's ValidationError for a wrong or unknown key."""
    kept = HfConfig.model_fields
    return HfConfig.model_validate({k: v for k, v in values.items() if k in kept or k not in OF_TRANSFORMERS})


def hf_config(config: ModelConfig, end: int, video: int, dtype: str) -> dict[str, Any]:
    """Return the content of config.json.

    `end` is the id of `<|endoftext|>`, `video` the id at the places of visual tokens, `dtype` PyTorch's name for the
    type of the stored matrices.
    """
    sections = config.model_dump(mode="json")
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        **({"auto_map": AUTO_MAP} if has_code(config) else {}),
        "dtype": dtype,
        "tie_word_embeddings": config.language_model.tie_embeddings,
        "video_token_id": video,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "text_config": {"model_type": TEXT_TYPE, **sections["language_model"]},
        "vision_config": {"model_type": VISION_TYPE, **sections["vision"]},
        "format_version": 2,
    }

"""Start a model from published weights: a language model, a vision encoder, or both."""

from pathlib import Path

import torch

from ma2mba.errors import UserError
from ma2mba.files import inside
from ma2mba.model.backbone import LanguageModel
from ma2mba.model.base_config import DEFAULT_ENCODER, DEFAULT_LAYER, BackboneConfig
from ma2mba.model.config import ModelConfig
from ma2mba.model.empty import build_empty, on_meta, parameters_on_meta, require_memory
from ma2mba.model.pretrained import is_model_folder, load_own_vision
from ma2mba.model.projector import Projector
from ma2mba.model.registry import BACKBONES, VISION_ENCODERS
from ma2mba.model.run_folder import CONFIG, find_model
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.model.vision import VisionEncoder
from ma2mba.model.weights import WEIGHTS, Weights, open_weights

TIED_LANGUAGE = "lm_head.weight"


def open_language_model(source: str, config: BackboneConfig) -> Weights:
    """Open a folder with a model.safetensors whose tensors have the names of a language model. Reads no weights.

    For Mamba-2 these are the names of `state-spaces/mamba2-*`. Raises UserError that names tensors if they differ.
    """
    folder = Path(source)
    if not (folder / WEIGHTS).is_file() and list(folder.glob("*.bin")):
        raise UserError(
            f"{folder}: holds a pickled checkpoint, which can run code when it is loaded. "
            f"Convert it to {WEIGHTS} as docs/training.md shows under 'Published weights'"
        )
    weights = open_weights(lambda name: inside(folder, name, folder))
    weights.require(on_meta(lambda: LanguageModel(config), weights, folder / CONFIG), TIED_LANGUAGE)
    return weights


def init_language_model(model: VideoMa2mba, source: str) -> None:
    """Load the language model from published weights (`open_language_model`)."""
    weights = open_language_model(source, model.config.language_model)
    weights.copy_into(model.language_model, TIED_LANGUAGE)


def init_vision(model: VideoMa2mba, source: str) -> None:
    """Load the vision encoder from published weights. Raise UserError if their configuration differs."""
    config = model.config.vision
    encoder = VISION_ENCODERS.module(config.encoder).load(source)
    if encoder.config != config:
        differing = [name for name, value in encoder.config if value != getattr(config, name)]
        raise UserError(
            f"{source}: its vision encoder differs from model.vision of the recipe in {', '.join(differing)}. "
            "Change model.vision, or name another encoder in init_from.vision"
        )
    model.vision = encoder


def start_model(
    config: ModelConfig,
    language_model: str | None,
    vision: str | None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> VideoMa2mba:
    """Return a new model with published weights for the components that have a source.

    PyTorch's random number generator draws the weights of the other components.
    """
    with torch.device("meta"), parameters_on_meta(dtype):
        model = VideoMa2mba(config)  # each component is replaced
    model.projector = Projector(config.vision.width, config.language_model.d_model)
    if vision:
        init_vision(model, vision)
    else:
        model.vision = VISION_ENCODERS.module(config.vision.encoder)(config.vision)
    if language_model:
        weights = open_language_model(language_model, config.language_model)
        require_memory(model.language_model, device, weights.path, dtype)
        model.language_model = build_empty(lambda: LanguageModel(config.language_model), device, dtype)
        init_language_model(model, language_model)
    else:
        model.language_model = LanguageModel(config.language_model)
    return model.to(device, dtype)


def load_vision(source: str) -> VisionEncoder:
    """Return the vision encoder of a model folder or run of this project, or published weights of the default encoder.

    Raises UserError if `source` is neither.
    """
    folder = find_model(source) if Path(source).is_dir() else Path(source)
    if is_model_folder(folder):
        return load_own_vision(folder)
    return VISION_ENCODERS.module(DEFAULT_ENCODER).load(source)


def published_config(language_model: str, vision: str, download: bool = False) -> ModelConfig:
    """Return the configuration of a model that starts from published weights.

    The layer and the encoder are the default ones; a recipe describes other models under `model`. With `download`, an
    encoder is loaded to read its configuration. Without it, an encoder that is not a local folder is assumed to have
    the default size. Raises UserError if a configuration cannot be read.
    """
    module, config = VISION_ENCODERS.module(DEFAULT_ENCODER), VISION_ENCODERS.config(DEFAULT_ENCODER)
    return ModelConfig(
        language_model=BACKBONES.config(DEFAULT_LAYER).of_published(language_model),
        vision=module.load(vision).config if download else config.of_published(vision),
    )

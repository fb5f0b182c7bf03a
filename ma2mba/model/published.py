"""Start a model from weights that somebody else trained: a language model, a vision encoder, or both.

A source is a folder or a hub name: of a model of this project or of its run (whose part is taken), of a language model
in one of the formats that `backbone_files.py` reads, or of a CLIP vision tower.
"""

from pathlib import Path

import torch

from ma2mba.errors import UserError
from ma2mba.files import inside
from ma2mba.hub import HubName, fetch, hub_name
from ma2mba.model.backbone import LanguageModel
from ma2mba.model.backbone_files import FORMATS, Backbone, export_backbone, open_backbone
from ma2mba.model.base_config import DEFAULT_ENCODER, DEFAULT_LAYER, BackboneConfig, VisionConfig
from ma2mba.model.clip import download_clip
from ma2mba.model.clip_config import PREPROCESSOR
from ma2mba.model.config import ModelConfig
from ma2mba.model.downloads import download_model, download_weights
from ma2mba.model.empty import build_empty, parameters_on_meta, require_memory
from ma2mba.model.mamba2_formats import BACKBONE_TYPE, format_of
from ma2mba.model.pickled import convert_to_cache
from ma2mba.model.pretrained import (
    is_model_folder,
    load_own_vision,
    open_model,
    open_own_language_model,
    read_config,
)
from ma2mba.model.projector import Projector
from ma2mba.model.registry import BACKBONES, VISION_ENCODERS
from ma2mba.model.run_folder import CONFIG, find_model
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.model.vision import VisionEncoder
from ma2mba.model.weights import Weights
from ma2mba.text import RECIPE_BYTES, read_json

MODEL, LANGUAGE, VISION = "model", "language model", "vision encoder"
"""What a folder holds."""


def kind_of(folder: Path) -> str:
    """Return what a folder holds: MODEL, LANGUAGE or VISION, as its config.json says; MODEL if it says nothing.

    Raise UserError if config.json cannot be read.
    """
    path = inside(folder, CONFIG, folder)
    values = read_json(path, RECIPE_BYTES) if path.is_file() else None
    if not isinstance(values, dict):
        return MODEL
    if values.get("model_type") == BACKBONE_TYPE or format_of(values):
        return LANGUAGE
    return VISION if str(values.get("model_type")).startswith("clip") else MODEL


def find_folder(source: str, *, weights: bool = True) -> Path:
    """Return the folder of a source: of a run, its latest checkpoint's model; of a hub name, a snapshot in the cache.

    Without `weights` no weights are downloaded.
    """
    name = hub_name(source)
    if name is None:
        return find_model(source) if Path(source).is_dir() else Path(source)
    return fetch(source, _download) if weights else fetch(source)


def _download(name: HubName) -> None:
    kind = kind_of(name.file(CONFIG).parent)
    {MODEL: download_model, LANGUAGE: download_weights, VISION: download_clip}[kind](name)


def open_language_model(source: str, config: BackboneConfig) -> Weights:
    """Open the weights of a language model with this configuration. Reads no weights but a stored head.

    Raises UserError that names tensors if they have other names or shapes.
    """
    folder = find_folder(source)
    if is_model_folder(folder):
        return open_own_language_model(folder, config)
    return open_backbone(folder, config, convert_to_cache).weights


def init_language_model(model: VideoMa2mba, source: str) -> None:
    """Load the language model from published weights (`open_language_model`)."""
    open_language_model(source, model.config.language_model).copy_into(model.language_model)


def init_vision(model: VideoMa2mba, source: str) -> None:
    """Load the vision encoder from published weights. Raise UserError if their configuration differs."""
    config = model.config.vision
    encoder = load_vision(source, config.encoder)
    if encoder.config != config:
        own = dict(config)
        differing = [name for name, value in encoder.config if name not in own or value != own[name]]
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
        weights.copy_into(model.language_model)
    else:
        model.language_model = LanguageModel(config.language_model)
    return model.to(device, dtype)


def load_vision(source: str, encoder: str = DEFAULT_ENCODER) -> VisionEncoder:
    """Return the vision encoder of a model folder or run of this project, or published weights of `encoder`.

    Raises UserError if `source` is neither.
    """
    name = hub_name(source)
    if name is None or kind_of(fetch(source)) == MODEL:
        folder = find_folder(source)
        if is_model_folder(folder):
            return load_own_vision(folder)
    return VISION_ENCODERS.module(encoder).load(source)


def published_config(language_model: str, vision: str, download: bool = False) -> ModelConfig:
    """Return the configuration of a model that starts from published weights.

    The layer and the encoder are those of a model of this project, else the default ones; a recipe describes other
    models under `model`. Reads no weights. Unless `download`, an encoder on a hub that cannot be reached is assumed to
    have the default size. Raises UserError if a configuration cannot be read.
    """
    return ModelConfig(language_model=_backbone_config(language_model), vision=_vision_config(vision, download))


def _backbone_config(source: str) -> BackboneConfig:
    folder = find_folder(source, weights=False)
    if is_model_folder(folder):
        return read_config(folder).language_model
    config: BackboneConfig = BACKBONES.config(DEFAULT_LAYER).of_published(source)
    return config


def _vision_config(source: str, download: bool) -> VisionConfig:
    config = VISION_ENCODERS.config(DEFAULT_ENCODER)
    try:
        folder = fetch(source, lambda name: name.find(PREPROCESSOR)) if hub_name(source) else find_folder(source)
    except UserError:
        if download or not hub_name(source):
            raise
        return config()
    found: VisionConfig = read_config(folder).vision if is_model_folder(folder) else config.of_published(str(folder))
    return found


def export_language_model(folder: Path, out: Path, format_name: str) -> None:
    """Write the language model of a model folder, or one alone, in a published format (`FORMATS`).

    Raise UserError if the folder is damaged, or if the format cannot represent the model; nothing is written then.
    """
    if is_model_folder(folder):
        opened = open_model(folder)
        backbone = Backbone(folder, opened.config.language_model, opened.weights.part("language_model."))
    else:
        backbone = open_backbone(folder, None, convert_to_cache)
    export_backbone(backbone, out, FORMATS[format_name])

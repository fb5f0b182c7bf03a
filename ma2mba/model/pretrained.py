"""Write and read model folders, and read published weights.

A model folder holds config.json, model.safetensors, tokenizer.json and checksums.json (SHA-256 of the other three). It
is written completely or not at all, and verified when it is read.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from ma2mba.errors import UserError
from ma2mba.files import atomic_folder, inside, sha256_file
from ma2mba.model.backbone import LanguageModel
from ma2mba.model.base_config import DEFAULT_ENCODER, DEFAULT_LAYER, BackboneConfig, problem
from ma2mba.model.config import ModelConfig
from ma2mba.model.conversation import load_tokenizer
from ma2mba.model.registry import BACKBONES, VISION_ENCODERS
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.model.vision import VisionEncoder
from ma2mba.model.weights import WEIGHTS, Weights, on_meta, open_weights, reason_of
from ma2mba.text import JSON_BYTES, RECIPE_BYTES, read_json

log = logging.getLogger(__name__)
CONFIG, TOKENIZER, CHECKSUMS = "config.json", "tokenizer.json", "checksums.json"
FILES = (CONFIG, WEIGHTS, TOKENIZER)
"""The files that checksums.json lists."""
TIED, TIED_LANGUAGE = "language_model.lm_head.weight", "lm_head.weight"


def save_model(
    model: VideoMa2mba, tokenizer_path: Path | str, folder: Path | str, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write a model folder under a temporary name, then rename it. Raise UserError if the folder exists.

    `weights` replace the model's own weights, of which a rank may hold only a share.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder}: exists already. Choose another folder, or remove this one")
    with atomic_folder(folder) as temporary:
        (temporary / CONFIG).write_text(model.config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        weights = weights or model.state_dict()
        tensors = {name: t.detach().contiguous().cpu() for name, t in weights.items() if name != TIED}
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        shutil.copyfile(tokenizer_path, temporary / TOKENIZER)
        sums = {name: sha256_file(temporary / name) for name in FILES}
        (temporary / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class OpenModel:
    """The verified files of a model folder, before memory is taken for its weights."""

    config: ModelConfig
    weights: Weights
    tokenizer: Tokenizer


def load_model(folder: Path | str, device: str = "cpu", *, finite: bool = True) -> tuple[VideoMa2mba, Tokenizer]:
    """Return the model of a folder, in evaluation mode, and its tokenizer.

    Raises UserError if a file is missing or damaged, if weights and tokenizer do not fit config.json, and (unless
    `finite` is False) for NaN and infinite weights.
    """
    opened = open_model(Path(folder), to_load=True)
    model = VideoMa2mba(opened.config)
    opened.weights.copy_into(model, TIED, finite=finite)
    model = model.to(device).eval()
    log.debug("model: %s, %s on %s", folder, next(model.parameters()).dtype, device)
    return model, opened.tokenizer


def open_model(folder: Path, *, to_load: bool = False) -> OpenModel:
    """Verify a model folder: checksums, and that weights and tokenizer fit config.json. Takes no memory for weights.

    Raise UserError that names the first wrong file; with `to_load` also for weights that this machine cannot hold.
    """
    sums = _read_checksums(folder)
    for name in (CONFIG, TOKENIZER):
        _verify(folder, name, sums)
    config = read_config(folder)
    weights = _open_weights(folder, config)
    if to_load:
        weights.require_memory()
    tokenizer = load_tokenizer(inside(folder, TOKENIZER, folder))
    _require_embedded(tokenizer, config, folder / TOKENIZER)
    _verify(folder, WEIGHTS, sums)
    return OpenModel(config, weights, tokenizer)


def _read_checksums(folder: Path) -> dict[str, str]:
    path = inside(folder, CHECKSUMS, folder)
    if not path.is_file():
        raise UserError(f"{folder}: not a model folder ({CHECKSUMS} is missing). Export one with `ma2mba export`")
    sums = read_json(path, RECIPE_BYTES)
    if not isinstance(sums, dict) or not all(isinstance(value, str) for value in sums.values()):
        raise UserError(f"{path}: not a list of files and their SHA-256. Export the model again with `ma2mba export`")
    for name in sums:
        inside(folder, name, path)
    if odd := sorted(sums.keys() ^ set(FILES)):
        fault = f"lists {odd[0]!r}, which a model does not have" if odd[0] in sums else f"does not list {odd[0]}"
        raise UserError(f"{path}: {reason_of(fault)}. Export the model again with `ma2mba export`")
    return sums


def _verify(folder: Path, name: str, sums: Mapping[str, str]) -> None:
    path = inside(folder, name, folder)
    if not path.is_file():
        raise UserError(f"{path}: is missing. Export the model again with `ma2mba export`")
    if name != WEIGHTS and path.stat().st_size > JSON_BYTES:
        raise UserError(f"{path}: larger than {JSON_BYTES:,} bytes. Export the model again with `ma2mba export`")
    if sha256_file(path) != sums[name]:
        raise UserError(f"{path}: is damaged (its checksum differs from {CHECKSUMS}). Export the model again")


def _open_weights(folder: Path, config: ModelConfig) -> Weights:
    """Open the weights of a model folder. Raise UserError unless their names and shapes are those of `config`."""
    weights = Weights.open(inside(folder, WEIGHTS, folder))
    weights.require(on_meta(lambda: VideoMa2mba(config), weights, folder / CONFIG), TIED)
    return weights


def _require_embedded(tokenizer: Tokenizer, config: ModelConfig, path: Path) -> None:
    largest, known = max(tokenizer.get_vocab().values(), default=0), config.language_model.padded_vocab_size
    if largest >= known:
        raise UserError(
            f"{path}: has a token with the id {largest}, but the model embeds {known} tokens. Use the tokenizer that "
            "the model was trained with"
        )


def read_config(folder: Path) -> ModelConfig:
    """Return the configuration of a model folder. Raise UserError if it is not a configuration of Video-Ma2mba."""
    path = inside(folder, CONFIG, folder)
    try:
        return ModelConfig.model_validate(read_json(path, RECIPE_BYTES))
    except ValidationError as error:
        raise UserError(
            f"{path}: not a Video-Ma2mba configuration ({problem(error)}). Export the model again with `ma2mba export`"
        ) from error


def check_weights(source: Path, config: ModelConfig) -> None:
    """Raise UserError unless the weights of a model folder have the names and shapes of `config`. Reads no weights."""
    _open_weights(source, config)


def init_weights(model: VideoMa2mba, source: str) -> None:
    """Load the weights of a model folder. Raise UserError that names tensors if the architecture differs."""
    opened = open_model(Path(source), to_load=True)
    opened.weights.require(model, TIED)
    opened.weights.copy_into(model, TIED)


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
    encoder = type(model.vision).load(source)
    if encoder.config != model.config.vision:
        differing = [name for name, value in encoder.config if value != getattr(model.config.vision, name)]
        raise UserError(
            f"{source}: its vision encoder differs from model.vision of the recipe in {', '.join(differing)}. "
            "Change model.vision, or name another encoder in init_from.vision"
        )
    model.vision.load_state_dict(encoder.state_dict())


def load_vision(source: str) -> VisionEncoder:
    """Return the vision encoder of a model folder of this project, or published weights of the default encoder.

    Raises UserError if `source` is neither.
    """
    if (Path(source) / CHECKSUMS).is_file():
        return load_model(source)[0].vision
    return VISION_ENCODERS.module(DEFAULT_ENCODER).load(source)


def published_config(language_model: str, vision: str, download: bool = False) -> ModelConfig:
    """Return the configuration of a model that starts from published weights.

    The layer and the encoder are the default ones; a recipe describes other models under `model`. With `download`, an
    encoder on a hub is loaded to read its configuration. Without it, an encoder that is not a local folder is assumed
    to have the default size. Raises UserError if a configuration cannot be read.
    """
    module, config = VISION_ENCODERS.module(DEFAULT_ENCODER), VISION_ENCODERS.config(DEFAULT_ENCODER)
    return ModelConfig(
        language_model=BACKBONES.config(DEFAULT_LAYER).of_published(language_model),
        vision=module.load(vision).config if download else config.of_published(vision),
    )

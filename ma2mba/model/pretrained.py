"""Write and read model folders, and read published weights.

A model folder holds config.json, model.safetensors, tokenizer.json and checksums.json (SHA-256 of the other three). It
is written completely or not at all, and verified when it is read.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from ma2mba.errors import UserError
from ma2mba.files import atomic_folder, sha256_file
from ma2mba.model.base_config import DEFAULT_ENCODER, DEFAULT_LAYER
from ma2mba.model.config import ModelConfig
from ma2mba.model.conversation import load_tokenizer
from ma2mba.model.registry import BACKBONES, VISION_ENCODERS
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.model.vision import VisionEncoder

log = logging.getLogger(__name__)
CONFIG, WEIGHTS, TOKENIZER, CHECKSUMS = "config.json", "model.safetensors", "tokenizer.json", "checksums.json"
TIED = "language_model.lm_head.weight"


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
        sums = {name: sha256_file(temporary / name) for name in (CONFIG, WEIGHTS, TOKENIZER)}
        (temporary / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def load_model(folder: Path | str, device: str = "cpu") -> tuple[VideoMa2mba, Tokenizer]:
    """Return the model of a folder, in evaluation mode, and its tokenizer.

    Raises UserError if a file is missing or damaged, or if the weights do not fit config.json.
    """
    folder = Path(folder)
    verify_model(folder)
    model = VideoMa2mba(read_config(folder))
    _load_into(model, _read_tensors(folder / WEIGHTS), folder / WEIGHTS)
    model = model.to(device).eval()
    log.debug("model: %s, %s on %s", folder, next(model.parameters()).dtype, device)
    return model, load_tokenizer(folder / TOKENIZER)


def verify_model(folder: Path) -> None:
    """Compare the files of a model folder with their checksums. Raise UserError that names the first wrong file."""
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: not a model folder ({CHECKSUMS} is missing or unreadable). Export one with `ma2mba export`"
        ) from error
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: is missing. Export the model again with `ma2mba export`")
        if sha256_file(path) != sums.get(name):
            raise UserError(f"{path}: is damaged (its checksum differs from {CHECKSUMS}). Export the model again")


def read_config(folder: Path) -> ModelConfig:
    """Return the configuration of a model folder. Raise UserError if it is not a configuration of Video-Ma2mba."""
    try:
        return ModelConfig.model_validate_json((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder / CONFIG}: cannot be read ({error.strerror}). Give a model folder") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "file"
        raise UserError(
            f"{folder / CONFIG}: not a Video-Ma2mba configuration ({key}: {first['msg']}). "
            "Export the model again with `ma2mba export`"
        ) from error


def init_weights(model: VideoMa2mba, source: str) -> None:
    """Load the weights of a model folder. Raise UserError that names tensors if the architecture differs."""
    folder = Path(source)
    verify_model(folder)
    _load_into(model, _read_tensors(folder / WEIGHTS), folder / WEIGHTS)


def init_language_model(model: VideoMa2mba, source: str) -> None:
    """Load the language model from a folder with a model.safetensors whose tensors have its names.

    For Mamba-2 these are the names of `state-spaces/mamba2-*`. Raises UserError that names tensors if they differ.
    """
    folder = Path(source)
    if not (folder / WEIGHTS).is_file() and list(folder.glob("*.bin")):
        raise UserError(
            f"{folder}: holds a pickled checkpoint, which can run code when it is loaded. "
            f"Convert it to {WEIGHTS} as docs/training.md shows under 'Published weights'"
        )
    _load_into(model.language_model, _read_tensors(folder / WEIGHTS), folder / WEIGHTS, tied="lm_head.weight")


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


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error}). Give a folder with a {WEIGHTS}") from error


def _load_into(module: nn.Module, tensors: Mapping[str, Tensor], path: Path, tied: str = TIED) -> None:
    wanted = {name: tuple(t.shape) for name, t in module.state_dict().items() if name != tied}
    found = {name: tuple(t.shape) for name, t in tensors.items() if name != tied}
    if wanted != found:
        names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        shown = "; ".join(
            f"{name} is {found.get(name, 'absent')}, not {wanted.get(name, 'known')}" for name in names[:3]
        )
        raise UserError(
            f"{path}: has another architecture than the model: {len(names)} tensors differ, first {shown}. "
            "Change the model's configuration, or use weights of this architecture"
        )
    module.load_state_dict({name: tensors[name] for name in wanted}, strict=False)

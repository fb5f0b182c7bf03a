"""Write and read model folders.

A model folder holds config.json, model.safetensors, tokenizer.json and checksums.json (SHA-256 of the other three). It
is written completely or not at all, and verified when it is read.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from ma2mba.errors import UserError
from ma2mba.files import atomic_folder, inside, sha256_file
from ma2mba.model.base_config import problem
from ma2mba.model.config import ModelConfig
from ma2mba.model.conversation import load_tokenizer
from ma2mba.model.dtypes import choose_dtype
from ma2mba.model.empty import build_empty, on_meta, require_memory
from ma2mba.model.registry import VISION_ENCODERS
from ma2mba.model.run_folder import CHECKSUMS, find_model
from ma2mba.model.tensor_file import reason_of
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.model.vision import VisionEncoder
from ma2mba.model.weights import WEIGHTS, Weights
from ma2mba.text import JSON_BYTES, RECIPE_BYTES, read_json

log = logging.getLogger(__name__)
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
FILES = (CONFIG, WEIGHTS, TOKENIZER)
"""The files that checksums.json lists."""
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
        sums = {name: sha256_file(temporary / name) for name in FILES}
        (temporary / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class OpenModel:
    """The files of a model folder, before memory is taken for its weights.

    outline  the model on the meta device
    """

    folder: Path
    config: ModelConfig
    weights: Weights
    outline: VideoMa2mba
    tokenizer: Tokenizer


def load_model(
    folder: Path | str,
    device: torch.device | str = "cpu",
    dtype: str | torch.dtype = "auto",
    *,
    config: ModelConfig | None = None,
    finite: bool = True,
) -> tuple[VideoMa2mba, Tokenizer]:
    """Return the model of a model folder, or of a run's latest checkpoint, in evaluation mode, and its tokenizer.

    Weights go straight from the file to the device. `dtype`: "auto" (bf16 on a GPU and on a CPU with AMX, else fp32),
    "bf16", "fp32" or a dtype. Parameters that a layer keeps in fp32 have the file's values. `config` replaces the
    folder's own configuration.

    Raises UserError if a file is missing or damaged, if weights and tokenizer do not fit the configuration, and (unless
    `finite` is False) for NaN and infinite weights.
    """
    dtype = choose_dtype(dtype, device) if isinstance(dtype, str) else dtype
    opened = _open(find_model(folder), dtype, config)
    require_memory(opened.outline, device, opened.weights.path, dtype)
    model = build_empty(lambda: VideoMa2mba(opened.config), device, dtype)
    opened.weights.copy_into(model, TIED, finite=finite)
    log.debug("model: %s, %s on %s", opened.folder, dtype, device)
    return model.eval(), opened.tokenizer


def open_model(folder: Path) -> OpenModel:
    """Verify a model folder: checksums, and that weights and tokenizer fit config.json. Takes no memory for weights.

    Raise UserError that names the first wrong file.
    """
    opened = _open(folder)
    if sha256_file(opened.weights.path) != opened.weights.sha256:
        raise _damaged(opened.weights.path)
    return opened


def _open(folder: Path, dtype: torch.dtype = torch.float32, config: ModelConfig | None = None) -> OpenModel:
    """As `open_model`, but the checksum of the weights is not verified yet: `Weights.copy_into` does."""
    sums = _read_checksums(folder)
    for name in (CONFIG, TOKENIZER):
        _verify(folder, name, sums)
    own = read_config(folder)
    config = config or own
    weights = Weights.open(inside(folder, WEIGHTS, folder), sums[WEIGHTS])
    outline = _outline(weights, config, folder, dtype)
    tokenizer = load_tokenizer(inside(folder, TOKENIZER, folder))
    _require_embedded(tokenizer, config, folder / TOKENIZER)
    return OpenModel(folder, config, weights, outline, tokenizer)


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
    if path.stat().st_size > JSON_BYTES:
        raise UserError(f"{path}: larger than {JSON_BYTES:,} bytes. Export the model again with `ma2mba export`")
    if sha256_file(path) != sums[name]:
        raise _damaged(path)


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: is damaged (its checksum differs from {CHECKSUMS}). Export the model again")


def _outline(weights: Weights, config: ModelConfig, folder: Path, dtype: torch.dtype = torch.float32) -> VideoMa2mba:
    """Return the model of `config` on the meta device. Raise UserError unless `weights` have its names and shapes."""
    outline = on_meta(lambda: VideoMa2mba(config), weights, folder / CONFIG, dtype)
    weights.require(outline, TIED)
    return outline


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
    _outline(Weights.open(inside(source, WEIGHTS, source)), config, source)


def load_own_vision(source: Path) -> VisionEncoder:
    """Return the vision encoder of a model folder. The whole file of weights is verified."""
    opened = _open(source)
    vision = opened.config.vision
    require_memory(opened.outline.vision, "cpu", opened.weights.path, torch.float32)
    encoder: VisionEncoder = build_empty(lambda: VISION_ENCODERS.module(vision.encoder)(vision))
    opened.weights.part("vision.").copy_into(encoder)
    return encoder

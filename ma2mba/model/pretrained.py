"""Write and read model folders.

A model folder is a folder that transformers reads: config.json, safetensors in one or several files, tokenizer.json,
and what else transformers needs (`ma2mba/model/hf/`). checksums.json has the SHA-256 of all files. A folder is written
completely or not at all, and verified when it is read. Folders of format 1 are read as well: they have the first three
files and checksums.json.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from tokenizers import Tokenizer
from torch import Tensor

from ma2mba.errors import UserError
from ma2mba.files import atomic_folder, inside
from ma2mba.model.base_config import BackboneConfig, problem
from ma2mba.model.checksums import TOKENIZER, read_checksums, verify
from ma2mba.model.config import ModelConfig
from ma2mba.model.conversation import load_tokenizer
from ma2mba.model.dtypes import choose_dtype
from ma2mba.model.empty import build_empty, on_meta, require_memory
from ma2mba.model.hf.card import CardFacts, model_card, read_card, relicensed
from ma2mba.model.hf.config import is_hf, parse_hf
from ma2mba.model.hf.folder import FolderContent, folder_content
from ma2mba.model.placeholder import without_placeholder
from ma2mba.model.registry import VISION_ENCODERS
from ma2mba.model.run_folder import CHECKSUMS, CONFIG, find_model
from ma2mba.model.tensor_writer import TensorSpec
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.model.vision import VisionEncoder
from ma2mba.model.weights import INDEX, WEIGHTS, Weights, open_weights, stored_tensors
from ma2mba.text import RECIPE_BYTES, read_json

log = logging.getLogger(__name__)


def save_model(
    model: VideoMa2mba,
    tokenizer_path: Path | str,
    folder: Path | str,
    weights: Mapping[str, Tensor] | None = None,
    facts: CardFacts | None = None,
) -> dict[str, str]:
    """Write a model folder under a temporary name, then rename it. Return the XXH3-128 of its files of tensors.

    `weights` replace the model's own weights, of which a rank may hold only a share. `tokenizer_path` is a file that
    `load_tokenizer` accepts. `facts` are for the model card. Raise UserError if the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder}: exists already. Choose another folder, or remove this one")
    own = stored_tensors(model)
    tensors = {name: weights[name] for name in own} if weights else own
    specs = {name: TensorSpec.of(name, t) for name, t in tensors.items()}
    card = model_card(model.config, specs, facts or CardFacts())
    content = folder_content(model.config, Path(tokenizer_path).read_bytes(), specs, card)
    with atomic_folder(folder) as temporary:
        return content.write(tensors.__getitem__, temporary)


@dataclass(frozen=True)
class OpenModel:
    """The files of a model folder, before memory is taken for its weights.

    outline         the model on the meta device
    signed          False if the folder has no checksums
    format_version  1 or 2
    """

    folder: Path
    config: ModelConfig
    weights: Weights
    outline: VideoMa2mba
    tokenizer: Tokenizer
    signed: bool
    format_version: int


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
    opened.weights.copy_into(model, finite=finite)
    log.debug("model: %s, %s on %s", opened.folder, dtype, device)
    return model.eval(), opened.tokenizer


def open_model(folder: Path) -> OpenModel:
    """Verify a model folder: checksums, and that weights and tokenizer fit config.json. Takes no memory for weights.

    Raise UserError that names the first wrong file.
    """
    opened = _open(folder, whole=True)
    opened.weights.verify()
    return opened


def copied_content(source: OpenModel, facts: CardFacts | None = None, license: str | None = None) -> FolderContent:
    """Return the content of a model folder with the tensors of another one.

    Without `facts`, the other one's card is kept, with another `license` if one is given.
    """
    stored = {name: source.weights.tensors[name] for name in stored_tensors(source.outline)}
    specs = {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in stored.items()}
    card = None if facts else read_card(source.folder)
    new = relicensed(card, license) if card else model_card(source.config, specs, facts or CardFacts(license=license))
    return folder_content(source.config, inside(source.folder, TOKENIZER, source.folder).read_bytes(), specs, new)


def copy_model(source: OpenModel, content: FolderContent, folder: Path) -> None:
    """Write a model folder. Raise UserError for NaN and infinite weights."""
    with atomic_folder(folder) as temporary:
        content.write(source.weights.read, temporary)
        for file in source.weights.files:
            file.require_unchanged()


def _open(
    folder: Path, dtype: torch.dtype = torch.float32, config: ModelConfig | None = None, *, whole: bool = False
) -> OpenModel:
    """As `open_model`, but the checksums of the weights are not verified yet: `Weights.copy_into` does.

    With `whole`, every file that checksums.json lists must be there.
    """
    sums = _read_sums(folder)
    verify(folder, sums, whole=whole)
    own, video_token_id = _read_config(folder)
    tied = own.language_model.tie_embeddings
    if config and config.language_model.tie_embeddings != tied:
        raise UserError(
            f"{folder / CONFIG}: tie_embeddings of the language model is {str(tied).lower()}, and model.language_model "
            "of the recipe says otherwise. Change tie_embeddings in the recipe, or use another model"
        )
    config = config or own
    if not sums and not any((folder / name).exists() for name in (WEIGHTS, INDEX)):
        raise UserError(f"{folder}: has no {WEIGHTS}. Save the model as safetensors: no other weights are read")
    weights = open_weights(lambda name: inside(folder, name, folder), sums)
    outline = _outline(weights, config, folder, dtype)
    tokenizer = without_placeholder(load_tokenizer(inside(folder, TOKENIZER, folder)), video_token_id)
    _require_embedded(tokenizer, config, folder / TOKENIZER)
    return OpenModel(folder, config, weights, outline, tokenizer, bool(sums), 1 if video_token_id is None else 2)


def _read_sums(folder: Path) -> dict[str, str]:
    """Return the checksums of a folder: {} for one that transformers saved, which has none."""
    if os.path.lexists(folder / CHECKSUMS):
        return read_checksums(folder)
    if is_model_folder(folder):
        log.warning("%s: has no %s, so damaged files cannot be detected", folder, CHECKSUMS)
        return {}
    raise UserError(f"{folder}: not a model folder ({CHECKSUMS} is missing). Export one with `ma2mba export`")


def is_model_folder(folder: Path) -> bool:
    """Return True if a folder has checksums.json, or the config.json of a Video-Ma2mba as transformers saves it."""
    if os.path.lexists(folder / CHECKSUMS):
        return True
    path = inside(folder, CONFIG, folder)
    return path.is_file() and is_hf(read_json(path, RECIPE_BYTES))


def _outline(weights: Weights, config: ModelConfig, folder: Path, dtype: torch.dtype = torch.float32) -> VideoMa2mba:
    """Return the model of `config` on the meta device. Raise UserError unless `weights` have its names and shapes."""
    outline = on_meta(lambda: VideoMa2mba(config), weights, folder / CONFIG, dtype)
    weights.require(outline)
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
    return _read_config(folder)[0]


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a model folder. Raise UserError if it, or the configuration, cannot be used."""
    return without_placeholder(load_tokenizer(inside(folder, TOKENIZER, folder)), _read_config(folder)[1])


def _read_config(folder: Path) -> tuple[ModelConfig, int | None]:
    """Return the configuration, and the id at the places of visual tokens (None in format 1)."""
    path = inside(folder, CONFIG, folder)
    values = read_json(path, RECIPE_BYTES)
    try:
        if isinstance(values, dict) and "model_type" in values:
            parsed = parse_hf(values)
            return parsed.model, parsed.video_token_id
        return ModelConfig.model_validate(values), None
    except ValidationError as error:
        raise UserError(
            f"{path}: not a Video-Ma2mba configuration ({problem(error)}). Export the model again with `ma2mba export`"
        ) from error


def check_weights(source: Path, config: ModelConfig) -> None:
    """Raise UserError unless the weights of a model folder have the names and shapes of `config`. Reads no weights."""
    _outline(open_weights(lambda name: inside(source, name, source)), config, source)


def load_own_vision(source: Path) -> VisionEncoder:
    """Return the vision encoder of a model folder. The files that hold it are verified as a whole."""
    opened = _open(source)
    vision = opened.config.vision
    require_memory(opened.outline.vision, "cpu", opened.weights.path, torch.float32)
    encoder: VisionEncoder = build_empty(lambda: VISION_ENCODERS.module(vision.encoder)(vision))
    opened.weights.part("vision.").copy_into(encoder)
    return encoder


def open_own_language_model(folder: Path, config: BackboneConfig) -> Weights:
    """Return the weights of a model folder's language model. Raise UserError if it has another configuration."""
    opened = _open(folder)
    if opened.config.language_model != config:
        raise UserError(
            f"{folder}: its language model differs from model.language_model of the recipe. Change the recipe, or name "
            "another language model in init_from"
        )
    return opened.weights.part("language_model.")

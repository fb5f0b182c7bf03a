"""Language models alone: read in the published formats and in this project's own, and written in each of them.

A folder of this project has config.json (model_type video_ma2mba_text and the fields of the layer's configuration),
model.safetensors with the names of `LanguageModel` without a tied head, and origin.json: where the weights come from.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ma2mba.errors import UserError
from ma2mba.files import atomic_folder, inside
from ma2mba.model.backbone import LanguageModel
from ma2mba.model.base_config import BackboneConfig
from ma2mba.model.conversation import load_tokenizer
from ma2mba.model.downloads import ORIGIN, write_json
from ma2mba.model.empty import on_meta
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.mamba2_formats import BACKBONE_TYPE, STATE_SPACES, TRANSFORMERS, Format, format_of
from ma2mba.model.pickled import PICKLE, Convert, convert_in, open_any
from ma2mba.model.plain_text import END
from ma2mba.model.tensor_file import FLOATS
from ma2mba.model.weights import WEIGHTS, Weights, stored_tensors
from ma2mba.text import RECIPE_BYTES, read_json

CONFIG = "config.json"
HEAD, EMBEDDING = "lm_head.weight", "backbone.embedding.weight"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
FORMATS = {"state-spaces": STATE_SPACES, "transformers-mamba2": TRANSFORMERS}
"""The names that `ma2mba export --format` takes."""
KEPT = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "rescale_prenorm_residual", "use_cache"),
    *("time_step_rank", "time_step_min", "time_step_max", "time_step_floor"),
)
END_ID = 0
"""The id of <|endoftext|> in the GPT-NeoX tokenizer, with which the models of state-spaces were trained."""


@dataclass(frozen=True)
class Backbone:
    """A language model in a folder, before memory is taken for its weights.

    weights  under the names of `LanguageModel`, without a tied head
    """

    folder: Path
    config: BackboneConfig
    weights: Weights


def open_backbone(folder: Path, config: BackboneConfig | None, convert: Convert) -> Backbone:
    """Open a language model in one of the formats; a pickled checkpoint is converted by `convert`.

    `config` is the architecture that is expected (default: what config.json says). Reads no weights but a tied head.
    Raise UserError, naming a key or tensors, for another architecture and for a head that contradicts config.json.
    """
    path = inside(folder, CONFIG, folder)
    values = read_json(path, RECIPE_BYTES) if config is None or path.is_file() else {}
    config = config or Mamba2Config.of_published(str(folder))
    weights = open_any(lambda name: inside(folder, name, folder), convert)
    known = format_of(values)
    if known:
        weights = weights.renamed(lambda name: EMBEDDING if name == known.embedding else name)
    key, default = (known.tied_key, known.tied) if known else ("tie_embeddings", True)
    if isinstance(values, Mapping) and values and values.get(key, default) != config.tie_embeddings:
        raise UserError(
            f"{path}: {key} is {str(not config.tie_embeddings).lower()}, and model.language_model of the recipe says "
            "otherwise. Change tie_embeddings in the recipe, or use another model"
        )
    outline = on_meta(lambda: LanguageModel(config), weights, path)
    return Backbone(folder, config, _stored(weights, outline, key))


def _stored(weights: Weights, outline: LanguageModel, key: str) -> Weights:
    """Return the weights of a model without a tied head. Raise UserError, naming `key`, if it is not as `key` says."""
    names, stored = stored_tensors(outline), HEAD in weights.tensors
    if HEAD in names and not stored:
        raise UserError(
            f"{weights.path}: has no {HEAD}, but {key} is false in {CONFIG}. Set {key} to true if the head is the "
            "embedding, or get the weights again"
        )
    weights.require(outline)
    if HEAD not in names and stored and not same_bits(weights.read(HEAD), weights.read(EMBEDDING)):
        raise UserError(
            f"{weights.path}: {HEAD} differs from the embedding, but {key} is true in {CONFIG}. Set {key} to false if "
            "the model has a head of its own, or get the weights again"
        )
    return Weights(weights.path, {name: weights.tensors[name] for name in names})


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return True if two tensors have the same dtype, shape and bytes."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def import_backbone(source: Path, wanted: Format, out: Path, origin: Mapping[str, Any]) -> Backbone:
    """Write a language model in a published format as a folder of this project, and return it.

    `origin` says where the weights come from. Raise UserError if the source is in another format, is damaged, or has
    NaN or infinite weights; nothing is written then.
    """
    path = inside(source, CONFIG, source)
    values = read_json(path, RECIPE_BYTES)
    if format_of(values) not in (wanted, None):
        raise UserError(f"{path}: in another format than that of {wanted.name}. Use the `ma2mba import` of that format")
    with atomic_folder(out) as temporary:
        scratch = temporary / ".converted"
        scratch.mkdir()
        backbone = open_backbone(source, None, convert_in(scratch))
        weights = backbone.weights
        weights.require_finite()
        config = {"model_type": BACKBONE_TYPE} | backbone.config.model_dump()
        write_json(temporary / CONFIG, config)
        write_json(temporary / ORIGIN, {**origin, "format": wanted.name, "config": values})
        _save({name: stored.read() for name, stored in weights.tensors.items()}, temporary / WEIGHTS)
        _copy_tokenizer(source, temporary)
        shutil.rmtree(scratch)
    return backbone


def export_backbone(backbone: Backbone, out: Path, wanted: Format) -> None:
    """Write a language model in a published format. Raise UserError if the format cannot represent it.

    In the format of state-spaces there is pytorch_model.bin, which mamba-ssm reads, and the same as safetensors.
    """
    config = backbone.config
    if not isinstance(config, Mamba2Config):
        raise UserError(f"{backbone.folder}: its layer is {config.layer}, and {wanted.name} has only mamba2 layers")
    values = wanted.write(dict(config))
    tensors = {
        wanted.embedding if name == EMBEDDING else name: stored.read()
        for name, stored in backbone.weights.tensors.items()
    }
    backbone.weights.require_finite()
    with atomic_folder(out) as temporary:
        if wanted is TRANSFORMERS:
            values |= _token_ids(backbone.folder) | _kept(backbone.folder) | {"dtype": _dtype(backbone.weights)}
        else:
            if config.tie_embeddings:
                tensors[HEAD] = tensors[wanted.embedding]
            torch.save(tensors, temporary / PICKLE)
            tensors[HEAD] = tensors[HEAD].clone()
        _save(tensors, temporary / WEIGHTS)
        write_json(temporary / CONFIG, values)
        _copy_tokenizer(backbone.folder, temporary)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _dtype(weights: Weights) -> str:
    """Return the dtype of most values, as transformers names it."""
    values: dict[str, int] = {}
    for stored in weights.tensors.values():
        values[stored.dtype] = values.get(stored.dtype, 0) + stored.stop - stored.start
    return str(FLOATS[max(values, key=lambda name: values[name])]).removeprefix("torch.")


def _kept(folder: Path) -> dict[str, Any]:
    """Return the keys in KEPT with which transformers published an imported model: we have no fields for them."""
    path = inside(folder, ORIGIN, folder)
    origin = read_json(path, RECIPE_BYTES) if path.is_file() else None
    if not isinstance(origin, dict) or origin.get("format") != TRANSFORMERS.name:
        return {}
    config = origin.get("config")
    return {key: config[key] for key in KEPT if key in config} if isinstance(config, dict) else {}


def _token_ids(folder: Path) -> dict[str, Any]:
    """Return the id of <|endoftext|> under each name that transformers has for it."""
    path = inside(folder, TOKENIZER_FILES[0], folder)
    found = load_tokenizer(path).token_to_id(END) if path.is_file() else END_ID
    return {f"{name}_token_id": found for name in ("bos", "eos", "pad")}


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for name in TOKENIZER_FILES:
        path = inside(source, name, source)
        if path.is_file():
            read_json(path)
            shutil.copyfile(path, folder / name)

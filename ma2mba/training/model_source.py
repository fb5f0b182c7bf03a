"""Where a run's model comes from: resolved once, so that job, planner and replay agree on weights and tokenizer."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ma2mba.errors import UserError
from ma2mba.files import sha256_file
from ma2mba.hub import fetch, hub_name
from ma2mba.model import published
from ma2mba.model.checksums import TOKENIZER
from ma2mba.model.config import ModelConfig
from ma2mba.model.conversation import load_tokenizer
from ma2mba.model.empty import build_empty
from ma2mba.model.hf.card import base_models, hub_names
from ma2mba.model.placeholder import same_tokens
from ma2mba.model.pretrained import (
    check_weights,
    load_model,
    read_config,
    read_tokenizer,
)
from ma2mba.model.published import LANGUAGE, find_folder, kind_of, published_config, start_model
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.model.weights import INDEX, WEIGHTS
from ma2mba.training.checkpoint.folder import MODEL, Start, model_folder
from ma2mba.training.recipe.schema import Pretrained, Recipe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSource:
    """The origin of weights, configuration and tokenizer.

    model           the architecture that the recipe describes; None: the weights' own
    folder          a model folder: of the checkpoint that is resumed, of a run's latest checkpoint, or any other
    resumed         `folder` belongs to the checkpoint that is resumed
    language_model  folder or hub name of weights for the language model
    vision          folder or hub name of weights for the vision encoder
    """

    model: ModelConfig | None
    folder: Path | None = None
    resumed: bool = False
    language_model: str | None = None
    vision: str | None = None

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer that the weights were trained with; None for new and for published weights."""
        return self.folder / TOKENIZER if self.folder else None

    def has_tokens_of(self, tokenizer: Path) -> bool:
        """Return False if the weights were trained with other tokens than those of the file `tokenizer`."""
        if not self.folder or sha256_file(self.folder / TOKENIZER) == sha256_file(tokenizer):
            return True
        return same_tokens(read_tokenizer(self.folder), load_tokenizer(tokenizer))

    @property
    def base_models(self) -> tuple[str, ...]:
        """The repositories of the hub from which the weights come, as far as they are known."""
        if self.folder:
            return base_models(self.folder)
        return hub_names({"language_model": self.language_model, "vision": self.vision})

    @property
    def draws_language_model(self) -> bool:
        """True if no file holds the weights of the language model: the seed draws them."""
        return self.folder is None and self.language_model is None

    def describe(self) -> str:
        """Return where the weights come from, as text."""
        if self.folder:
            return str(self.folder)
        published = {"language model": self.language_model, "vision encoder": self.vision}
        return ", ".join(f"{name} of {place}" for name, place in published.items() if place) or "new, drawn by the seed"

    def read_config(self, download: bool = False) -> ModelConfig:
        """Return the architecture. Raise UserError when a configuration is missing, unreadable, or not the weights'.

        Reads no weights, only their names and shapes. Unless `download`, a vision encoder on a hub that cannot be
        reached is assumed to have the default size.
        """
        if self.model is not None:
            return self.model
        if self.folder:
            config = read_config(self.folder)
            if any((self.folder / name).exists() for name in (WEIGHTS, INDEX)):
                check_weights(self.folder, config)
            return config
        assert self.language_model is not None, "the recipe's validation asks for a model otherwise"
        return published_config(self.language_model, self.vision or "", download)

    def build(
        self,
        seed: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        finite: bool = True,
    ) -> VideoMa2mba:
        """Return the model with its weights, in training mode; `seed` draws all weights that no file holds.

        Stored weights go straight to `device`. Parameters that a layer keeps in fp32 are in fp32 whatever `dtype` is.
        Raise UserError when a file is missing or damaged, or holds another architecture; unless `finite` is False,
        also for NaN and infinite weights of a model folder.
        """
        torch.manual_seed(seed)
        if self.folder:
            self._require_same_model(self.folder)
            return load_model(self.folder, device, dtype, config=self.model, finite=finite)[0].train()
        config = self.read_config(download=True)
        if self.language_model or self.vision:
            return start_model(config, self.language_model, self.vision, device, dtype).train()
        return VideoMa2mba(config).train()

    def build_empty(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> VideoMa2mba:
        """Return the model of `build` before its parameters have values: another rank has read or drawn these.

        Memory that was never written takes no space. Raise UserError as `read_config` does.
        """
        if self.folder:
            self._require_same_model(self.folder)
        config = self.read_config(download=True)
        return build_empty(lambda: VideoMa2mba(config), device, dtype).train()

    def _require_same_model(self, folder: Path) -> None:
        """Raise UserError if the recipe's model is not the model of the checkpoint that is resumed."""
        if self.resumed and self.model not in (None, read_config(folder)):
            raise UserError(
                f"{folder.parent}: this checkpoint has another architecture than the recipe's model. Remove "
                "model from the recipe, or train the new model in a new run folder"
            )


def find_source(recipe: Recipe, start: Start | None = None) -> ModelSource:
    """Return where the model of `recipe` comes from; `start` is the checkpoint that is resumed.

    A model of this project on the hub is downloaded. Raise UserError when `init_from` names neither a folder nor a
    repository of the hub.
    """
    if start:
        return ModelSource(recipe.model, start.folder / MODEL, resumed=True)
    if isinstance(recipe.init_from, str):
        return _find(recipe.init_from, recipe.model)
    parts = recipe.init_from or Pretrained()
    return ModelSource(recipe.model, language_model=parts.language_model, vision=parts.vision)


def _find(source: str, model: ModelConfig | None) -> ModelSource:
    """Return where `init_from: source` leads: to a whole model, or to a language model or a vision encoder alone."""
    on_hub = hub_name(source) is not None
    folder = fetch(source) if on_hub else model_folder(source)
    kind = kind_of(folder)
    if kind == published.MODEL:
        return ModelSource(model, find_folder(source) if on_hub else folder)
    if model is None:
        raise UserError(
            f"init_from: {source} holds a {kind} alone. Name it under init_from.language_model or init_from.vision, "
            "with the other one; or describe the model under model"
        )
    return ModelSource(model, language_model=source) if kind == LANGUAGE else ModelSource(model, vision=source)


def pin(recipe: Recipe, start: Start | None = None) -> Recipe:
    """Return the recipe with a commit in each hub name of `init_from`: a branch or a tag may move.

    With a checkpoint that is resumed, these are the commits with which the run has started, as its recipe says.
    """
    source, saved = recipe.init_from, start.state.recipe.get("init_from") if start else None
    if isinstance(source, str):
        return recipe.model_copy(update={"init_from": _pinned("init_from", source, saved, start)})
    if source is None:
        return recipe
    before = saved if isinstance(saved, Mapping) else {}
    commits = {
        key: _pinned(f"init_from.{key}", text, before.get(key), start)
        for key, text in source.model_dump().items()
        if text is not None
    }
    return recipe.model_copy(update={"init_from": Pretrained(**commits)})


def _pinned(key: str, text: str, saved: Any, start: Start | None) -> str:
    name = hub_name(text)
    if name is None:
        return text
    if start:
        before = hub_name(saved) if isinstance(saved, str) else None
        return str(before) if before and before.name == name.name else text
    pinned = name.pinned()
    if pinned != name:
        log.info("%s: %s is commit %s", key, name, pinned.revision)
    return str(pinned)

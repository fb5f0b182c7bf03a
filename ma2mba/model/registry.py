"""Backbone layers and vision encoders by name, as `language_model: {layer: NAME}` and `vision: {encoder: NAME}` choose.

To add one, write its configuration class and its module, and register both under a name (docs/extending.md).
"""

from typing import Any

from ma2mba.model.base_config import DEFAULT_ENCODER, DEFAULT_LAYER
from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.mamba2_config import Mamba2Config


class Registry:
    """Pairs of a configuration class and a module class, each pair under a name.

    In place of the module class a function may be given that imports and returns it: recipes are validated before torch
    is imported, which takes seconds.
    """

    def __init__(self, key: str):
        self.key = key
        self._entries: dict[str, tuple[type, Any]] = {}

    def add(self, name: str, config: type, module: Any) -> None:
        """Register a pair. Raises ValueError if the name is taken by another pair."""
        if self._entries.setdefault(name, (config, module)) != (config, module):
            raise ValueError(f"{self.key}: {name} is already registered. Choose another name")

    def config(self, name: str) -> Any:
        """Return the configuration class of a name. Raise ValueError for an unknown name."""
        config: Any = self._entry(name)[0]
        default = config.model_fields[self.key].default
        if default != name:
            raise ValueError(f'{config.__name__}.{self.key} is {default!r}. Declare it as Literal["{name}"] = "{name}"')
        return config

    def module(self, name: str) -> Any:
        """Return the module class of a name. Raise ValueError for an unknown name."""
        module = self._entry(name)[1]
        return module if isinstance(module, type) else module()

    def _entry(self, name: str) -> tuple[type, Any]:
        if name not in self._entries:
            raise ValueError(f"{name!r} is unknown. Use one of: {', '.join(sorted(self._entries))}")
        return self._entries[name]


BACKBONES, VISION_ENCODERS = Registry("layer"), Registry("encoder")


def register_backbone(name: str, config: type, layer: Any) -> None:
    """Make `language_model: {layer: NAME}` build a language model of such layers.

    `config` is a subclass of `ma2mba.model.base_config.BackboneConfig`, `layer` one of
    `ma2mba.model.layer.RecurrentLayer`.
    """
    BACKBONES.add(name, config, layer)


def register_vision_encoder(name: str, config: type, encoder: Any) -> None:
    """Make `vision: {encoder: NAME}` build such a vision encoder.

    `config` is a subclass of `ma2mba.model.base_config.VisionConfig`, `encoder` one of
    `ma2mba.model.vision.VisionEncoder`.
    """
    VISION_ENCODERS.add(name, config, encoder)


def _mamba2_layer() -> type:
    from ma2mba.model.mamba2 import Mamba2Layer

    return Mamba2Layer


def _clip_encoder() -> type:
    from ma2mba.model.clip import ClipEncoder

    return ClipEncoder


register_backbone(DEFAULT_LAYER, Mamba2Config, _mamba2_layer)
register_vision_encoder(DEFAULT_ENCODER, ClipConfig, _clip_encoder)

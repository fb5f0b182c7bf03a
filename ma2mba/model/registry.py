"""Backbone layers and vision encoders by name, as `language_model: {layer: NAME}` and `vision: {encoder: NAME}` choose.

To add one, write its configuration class and its module, and register both under a name (docs/extending.md). A class
may be given as "module:Class"; it is then imported when a configuration first uses its name.
"""

from importlib import import_module
from typing import Any

DEFAULT_LAYER, DEFAULT_ENCODER = "mamba2", "clip"
"""The names that a configuration need not give. A `config.json` does not hold them either."""


class Registry:
    """Pairs of a configuration class and a module class, each pair under a name."""

    def __init__(self, key: str):
        self.key = key
        self._entries: dict[str, tuple[type | str, type | str]] = {}

    def add(self, name: str, config: type | str, module: type | str) -> None:
        """Register a pair. Raises ValueError if the name is taken by another pair."""
        if self._entries.setdefault(name, (config, module)) != (config, module):
            raise ValueError(f"{self.key}: {name} is already registered; choose another name")

    def config(self, name: str) -> Any:
        """Return the configuration class of a name. Raise ValueError for an unknown name."""
        config: Any = _resolve(self._entry(name)[0])
        default = config.model_fields[self.key].default
        if default != name:
            raise ValueError(f'{config.__name__}.{self.key} is {default!r}; declare it as Literal["{name}"] = "{name}"')
        return config

    def module(self, name: str) -> Any:
        """Return the module class of a name. Raise ValueError for an unknown name."""
        return _resolve(self._entry(name)[1])

    def _entry(self, name: str) -> tuple[type | str, type | str]:
        if name not in self._entries:
            raise ValueError(f"{name!r} is unknown; use one of: {', '.join(sorted(self._entries))}")
        return self._entries[name]


def _resolve(found: type | str) -> type:
    if not isinstance(found, str):
        return found
    module, _, name = found.partition(":")
    return getattr(import_module(module), name)


BACKBONES, VISION_ENCODERS = Registry("layer"), Registry("encoder")


def register_backbone(name: str, config: type | str, layer: type | str) -> None:
    """Make `language_model: {layer: NAME}` build a language model of such layers.

    `config` is a subclass of `ma2mba.model.config.BackboneConfig`, `layer` one of `ma2mba.model.layer.RecurrentLayer`.
    """
    BACKBONES.add(name, config, layer)


def register_vision_encoder(name: str, config: type | str, encoder: type | str) -> None:
    """Make `vision: {encoder: NAME}` build such a vision encoder.

    `config` is a subclass of `ma2mba.model.config.VisionConfig`, `encoder` one of `ma2mba.model.vision.VisionEncoder`.
    """
    VISION_ENCODERS.add(name, config, encoder)


# By name, not by class: a recipe is validated before torch is imported, which takes seconds.
register_backbone("mamba2", "ma2mba.model.mamba2_config:Mamba2Config", "ma2mba.model.mamba2:Mamba2Layer")
register_vision_encoder("clip", "ma2mba.model.clip_config:ClipConfig", "ma2mba.model.clip:ClipEncoder")

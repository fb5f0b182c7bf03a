"""README.md of a model folder: the model card that the Hugging Face hub shows. What is not known is said."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Template
from typing import Any

import yaml

from ma2mba.errors import UserError
from ma2mba.files import inside, read_bounded
from ma2mba.model.checksums import CARD
from ma2mba.model.config import ModelConfig
from ma2mba.model.hf.config import has_code
from ma2mba.model.tensor_writer import TensorSpec
from ma2mba.text import RECIPE_BYTES, parse_yaml

TAGS = ["ma2mba", "mamba2", "video"]
FRONT = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
"""The YAML block at the beginning of a card."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
"""OWNER/NAME of a repository of the hub."""
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
"""An identifier of a licence on the hub, such as apache-2.0 or other."""
UNKNOWN = "Unknown."
MOST_LISTED = 20
"""Entries of a list in the recipe that a card shows: `exclude` may have thousands."""


@dataclass(frozen=True)
class CardFacts:
    """What is known about a model besides its configuration.

    recipe       the training recipe as JSON, with all its keys
    step         the number of training steps done
    metrics      the last line of metrics.jsonl up to `step`
    base_models  the repositories of the hub that the weights started from
    license      the identifier of the licence; None: unknown
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    step: int | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    base_models: tuple[str, ...] = ()
    license: str | None = None

    def with_license(self, license: str | None) -> "CardFacts":
        return replace(self, license=license or self.license)


def require_license(identifier: str | None) -> None:
    """Raise UserError if this cannot be the identifier of a licence."""
    if identifier is not None and not LICENSE.fullmatch(identifier):
        raise UserError(
            f"--license {identifier}: not an identifier of a licence on the hub. Use one such as apache-2.0, mit, "
            "cc-by-4.0 or other"
        )


def model_card(config: ModelConfig, specs: Mapping[str, TensorSpec], facts: CardFacts) -> str:
    """Return the content of README.md."""
    counts: dict[str, int] = {}
    for name, spec in specs.items():
        part = name.split(".", 1)[0].replace("_", " ")
        counts[part] = counts.get(part, 0) + math.prod(spec.shape)
    own = not has_code(config)
    usage = Template(_text("usage_own.md" if own else "usage.md")).substitute(
        folder="FOLDER", layer=config.language_model.layer, encoder=config.vision.encoder
    )
    body = Template(_text("card.md")).substitute(
        title=f"Video-Ma²mba, {_short(sum(counts.values()))} parameters",
        parameters=_short(sum(counts.values())),
        parts=", ".join(f"{part} {_short(count)}" for part, count in sorted(counts.items())),
        image_size=config.image_size,
        tokens_per_frame=config.tokens_per_frame,
        usage=usage.strip(),
        training=_training(facts),
        metrics=_metrics(facts.metrics),
        bases=_bases(facts),
        license=facts.license or f"{UNKNOWN} Ask whoever trained the model before you use it.",
    )
    return _front(facts, own=own) + body


def read_card(folder: Path) -> str | None:
    """Return the card of a model folder, None if it has none."""
    path = inside(folder, CARD, folder)
    return read_bounded(path, RECIPE_BYTES).decode(errors="replace") if path.is_file() else None


def base_models(folder: Path) -> tuple[str, ...]:
    """Return the repositories that a folder's card names as base models: () if it cannot be read."""
    found = FRONT.match(read_card(folder) or "")
    try:
        values = parse_yaml(found[1]) if found else {}
    except ValueError:
        return ()
    named = values.get("base_model", ()) if isinstance(values, dict) else ()
    names = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    return tuple(name for name in names[:10] if isinstance(name, str) and HUB_NAME.fullmatch(name))


def relicensed(card: str, license: str | None) -> str:
    """Return a card that somebody wrote, with a licence in its YAML block. None changes nothing."""
    if license is None:
        return card
    found = FRONT.match(card)
    try:
        values = parse_yaml(found[1]) if found else {}
    except ValueError as error:
        raise UserError(f"{CARD}: its YAML block cannot be read ({error}). Correct it, or remove --license") from error
    values = values if isinstance(values, dict) else {}
    return _block(values | {"license": license}) + (card[found.end() :] if found else card)


def _front(facts: CardFacts, *, own: bool) -> str:
    values: dict[str, Any] = {"library_name": "ma2mba" if own else "transformers", "pipeline_tag": "video-text-to-text"}
    values["tags"] = TAGS
    if facts.license:
        values["license"] = facts.license
    if facts.base_models:
        values["base_model"] = list(facts.base_models)
    return _block(values)


def _block(values: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)}---\n"


def _training(facts: CardFacts) -> str:
    recipe = facts.recipe
    if not recipe:
        return UNKNOWN
    done = f"{facts.step:,} training steps" if facts.step is not None else "An unknown number of training steps"
    data = recipe.get("data")
    sources = [entry.get("path") if isinstance(entry, Mapping) else entry for entry in _listed(data)]
    names = ", ".join(f"`{_last(source)}`" for source in sources) or "unknown"
    shown = yaml.safe_dump(_without_paths(recipe), sort_keys=False, allow_unicode=True)
    return (
        f"{done} of the stage `{recipe.get('stage', 'unknown')}`, on shards named {names}. What these hold, and under "
        f"which licences, is unknown.\n\nThe recipe (of paths, the last part):\n\n```yaml\n{shown}```"
    )


def _metrics(metrics: Mapping[str, Any]) -> str:
    loss, step = metrics.get("loss"), metrics.get("step")
    if not isinstance(loss, int | float) or not math.isfinite(loss):
        return "Unknown: neither a training loss nor a result of a benchmark."
    return f"Training loss: {loss:.4f} at step {step}. Results of benchmarks: unknown."


def _bases(facts: CardFacts) -> str:
    if facts.base_models:
        return "\n".join(f"- [{name}](https://huggingface.co/{name})" for name in facts.base_models)
    start = facts.recipe.get("init_from")
    if isinstance(start, str):
        return f"Unknown. Training started from the model in a folder named `{_last(start)}`."
    named = {part: _last(place) for part, place in start.items() if place} if isinstance(start, Mapping) else {}
    if named:
        places = ", ".join(f"the {part.replace('_', ' ')} from a folder named `{name}`" for part, name in named.items())
        return f"Unknown. Training started from published weights: {places}."
    return "None: the weights were drawn at random." if facts.recipe else UNKNOWN


def hub_names(init_from: Any) -> tuple[str, ...]:
    """Return the repositories of the hub that a recipe's `init_from` names."""
    places = init_from.values() if isinstance(init_from, Mapping) else (init_from,)
    names = [str(place).split("@")[0] for place in places if isinstance(place, str)]
    return tuple(name for name in names if HUB_NAME.fullmatch(name))


def _without_paths(value: Any) -> Any:
    """Return a recipe without what a path says about a person or a machine: of each absolute path, its last part."""
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        more = [f"... and {len(value) - MOST_LISTED:,} more"] if len(value) > MOST_LISTED else []
        return [_without_paths(item) for item in value[:MOST_LISTED]] + more
    return _last(value) if isinstance(value, str) and value.startswith(("/", "~")) else value


def _last(path: Any) -> str:
    return Path(str(path)).name or "/"


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _short(count: int) -> str:
    """Return a number of parameters as people say it."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return str(count)


def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")

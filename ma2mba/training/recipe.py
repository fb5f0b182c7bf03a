"""A training recipe: YAML, changed by `key=value`, validated as a whole before anything is touched.

Validation is pure: it reads no disk, no network and no process group. Every problem is reported at once.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from ma2mba.errors import UserError
from ma2mba.model.config import ModelConfig
from ma2mba.training.conflicts import conflicts

PART_NAMES = ("projector", "language_model", "vision")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


class Pretrained(_Section):
    """Folders (or hub names, for vision) of weights that were trained elsewhere."""

    language_model: str | None = None
    vision: str | None = None


class Weighted(_Section):
    """A shard folder whose samples are drawn `weight` times as often as those of a folder of weight 1."""

    path: str
    weight: PositiveFloat = 1.0


class Trainable(_Section):
    """Learning rate of each part; a part without one is frozen."""

    projector: PositiveFloat | None = None
    language_model: PositiveFloat | None = None
    vision: PositiveFloat | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Those that are trained."""
        return tuple(part for part in PART_NAMES if getattr(self, part) is not None)


class Optimizer(_Section):
    """AdamW."""

    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.05
    eps: PositiveFloat = 1e-8


class Schedule(_Section):
    """Linear warm-up over a share of all steps, then a cosine down to a share of the learning rate."""

    warmup_ratio: float = Field(default=0.1, ge=0.0, lt=1.0)
    min_lr_ratio: float = Field(default=0.0, ge=0.0, le=1.0)


class Magc(_Section):
    """How the sequence is checkpointed: the fields of `ma2mba.magc.Plan`. In place of all of them "auto": the planner
    chooses."""

    nesting: Literal["sequence", "layer"] = "sequence"
    chunk_tokens: PositiveInt = 4096
    group_layers: PositiveInt = 1
    stash: Literal["device", "host"] = "device"
    stash_every: PositiveInt = 1
    memo_chunks: NonNegativeInt = 0
    graphs: bool = False


class Parallel(_Section):
    """How ranks share the work beside data parallelism: so many of them take parts of each sequence."""

    sequence: PositiveInt = 1


class Checkpoint(_Section):
    """Save every so many steps and at the end; keep the last `keep_last` (null: all) and multiples of `keep_every`."""

    every: PositiveInt = 500
    keep_last: PositiveInt | None = 2
    keep_every: PositiveInt | None = None


class Watchdog(_Section):
    """All ranks end when a step takes `factor` times as long as usual for its tokens, and at least `seconds`."""

    seconds: PositiveFloat = 1800.0
    factor: float = Field(default=4.0, ge=1.0)


class Recipe(_Section):
    """One training stage. docs/training.md explains every key."""

    stage: Literal["stage1", "stage1_5", "stage2"]
    data: str | list[str | Weighted]
    run: str
    init_from: str | Pretrained | None = None
    model: ModelConfig | None = None
    trainable: Trainable
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    global_batch: PositiveInt
    micro_batch: PositiveInt = 1
    micro_batch_tokens: PositiveInt | None = None
    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    clip: PositiveFloat = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    magc: Magc | Literal["auto"] = "auto"
    parallel: Parallel = Parallel()
    zero_config: str = "ds_configs/zero1.json"
    checkpoint: Checkpoint = Checkpoint()
    watchdog: Watchdog | None = Watchdog()
    resume: str = "auto"
    seed: int = Field(default=0, ge=0)
    order: Literal["shuffled", "length"] = "shuffled"
    log_every: PositiveInt = 10

    @property
    def sources(self) -> list[Weighted]:
        """The shard folders, each with its weight."""
        entries = [self.data] if isinstance(self.data, str) else self.data
        return [Weighted(path=entry) if isinstance(entry, str) else entry for entry in entries]

    @property
    def folders(self) -> list[Path]:
        return [Path(source.path) for source in self.sources]

    @property
    def run_folder(self) -> Path:
        return Path(self.run)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe and apply `key=value` overrides (`trainable.vision=4e-6`); values are YAML.

    Raises UserError naming every key that is unknown, missing, of a wrong type or impossible beside another.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the path of a recipe, as launch/recipes/stage1.yaml"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({error}); compare it with launch/recipes/stage1.yaml") from error
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: holds {type(values).__name__} where keys and values belong; see launch/recipes/stage1.yaml"
        )
    for override in overrides:
        _override(values, override)
    return parse_recipe(values, str(path))


def parse_recipe(values: dict[str, Any], name: str = "recipe") -> Recipe:
    """Validate what a YAML file holds. Raises UserError with one line for every problem."""
    try:
        recipe = Recipe.model_validate(values)
        problems = [text for _, text in conflicts(recipe)]
    except ValidationError as error:
        recipe, problems = None, _describe(error, values)
        wrong = {str(e["loc"][0]) for e in error.errors()}
        sound = {key: value for key, value in values.items() if key in Recipe.model_fields and key not in wrong}
        stand_in = Recipe.model_validate(_STAND_IN | sound)
        problems += [text for keys, text in conflicts(stand_in) if not wrong & set(keys)]
    if problems or recipe is None:
        raise UserError("\n  ".join([f"{name}: {len(problems)} problem{'s' * (len(problems) > 1)}", *problems]))
    return recipe


_STAND_IN: dict[str, Any] = {
    "stage": "stage1",
    "data": "data",
    "run": "run",
    "init_from": None,
    "trainable": {"projector": 1.0},
    "global_batch": 1,
}


def _override(values: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    if not equals or not path.strip("."):
        raise UserError(f"{text}: not an override; write key=value, as in trainable.vision=4e-6")
    *sections, key = path.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    try:
        values[key] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"{text}: the value is not YAML ({error}); quote it") from error


def _describe(error: ValidationError, values: dict[str, Any]) -> list[str]:
    return [_problem(e) for e in error.errors() if _is_meant(e["loc"], values)]


def _is_meant(loc: Sequence[int | str], values: dict[str, Any]) -> bool:
    """Of the forms that a key may take, only the one that the user began to write counts."""
    key = str(loc[0])
    if key not in ("data", "init_from", "magc") or len(loc) == 1:
        return True
    if key == "magc":
        return (loc[1] == "Magc") == isinstance(values[key], dict)
    if key == "data" and isinstance(values[key], list):
        form = "Weighted" if len(loc) > 3 and isinstance(values[key][int(loc[2])], dict) else "str"
        return str(loc[1]).startswith("list[") and (len(loc) < 4 or loc[3] == form)
    if key == "init_from" and isinstance(values[key], dict):
        return loc[1] == "Pretrained"
    return loc[1] == "str"


def _problem(error: Any) -> str:
    forms = ("str", "list[union[str,Weighted]]", "Weighted", "Pretrained", "Magc", "literal['auto']")
    loc = [str(part) for part in error["loc"] if part not in forms]
    path, message = ".".join(loc), str(error["msg"])
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key{_suggestion(loc)}"
    if error["type"] == "missing":
        return f"{path}: missing; it is required"
    return f"{path}: {error['input']!r} is wrong: {message[0].lower()}{message[1:]}"


def _suggestion(loc: Sequence[str]) -> str:
    fields = _fields(loc[:-1])
    if loc[-1] in ("lr", "learning_rate"):
        return "; learning rates stand under trainable, one for each part"
    near = difflib.get_close_matches(loc[-1], fields, 1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(fields)}"


def _fields(loc: Sequence[str]) -> list[str]:
    section: type[BaseModel] = Recipe
    for part in loc:
        if not part.isdigit():
            options = _forms(section.model_fields[part].annotation)
            section = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return list(section.model_fields)


def _forms(annotation: Any) -> list[Any]:
    """A type and all that it is made of."""
    return [annotation, *(form for inner in getattr(annotation, "__args__", ()) for form in _forms(inner))]

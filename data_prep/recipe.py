"""The recipe of a build: a YAML file, checked whole before anything is read or written."""

import glob
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from ma2mba.errors import UserError
from ma2mba.files import reading, sha256_file
from ma2mba.shards.format import FORMAT_VERSION

Names = Annotated[
    list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value), Field(min_length=1)
]


Format = Literal[
    "llava",
    "webvid",
    "scenewalk",
    "scenewalk_segments",
    "llava_video",
    "nextqa_mc",
    "nextqa_oe",
    "activitynet_qa",
    "perception_test",
]


class Source(BaseModel):
    """Annotation files of one format and the folder that their media paths are relative to.

    An annotation with `*` stands for all files that fit, in order of name. Sources of one `name` (by default the
    format) are one data set; `weight` is how often training draws a sample of it beside one of weight 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Format
    name: str = Field(min_length=1)
    annotations: Names
    media: str
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_by_format(cls, given: Any) -> Any:
        return {"name": given.get("format"), **given} if isinstance(given, dict) else given

    def files(self, base: Path) -> list[tuple[str, Path]]:
        """(name, path) of every annotation file, once; a pattern that fits none gives nothing."""
        paths: dict[Path, str] = {}
        for given in self.annotations:
            for name in _expand(given, base):
                paths.setdefault(base / name, name)
        return [(name, path) for path, name in paths.items()]


def _expand(name: str, base: Path) -> list[str]:
    return sorted(glob.glob(name, root_dir=base, recursive=True)) if "*" in name else [name]


class Recipe(BaseModel):
    """Everything that decides the bytes of a build. Paths are relative to the recipe's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    stage: Literal["stage1", "stage1_5", "stage2"]
    tokenizer: str
    sources: list[Source] = Field(min_length=1)
    image_size: int = Field(default=336, ge=8, le=4096)
    fps: float = Field(default=1.0, gt=0, le=120)
    jpeg_quality: int = Field(default=95, ge=1, le=100)
    clips_per_part: int = Field(default=64, ge=1)
    on_damage: Literal["reject", "keep"] = "reject"
    decoder: Literal["pyav", "decord"] = "pyav"

    @field_validator("sources")
    @classmethod
    def _one_meaning_of_a_name(cls, sources: list[Source]) -> list[Source]:
        known: dict[str, Source] = {}
        for i, source in enumerate(sources):
            first = known.setdefault(source.name, source)
            if (first.format, first.weight) != (source.format, source.weight):
                raise ValueError(f"source {i} is named {source.name} like one of another format or weight; rename it")
        return sources


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe. Raises UserError with every fault at once, each with the path to its key."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the recipe ({error.strerror}); name a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping with the keys {', '.join(Recipe.model_fields)}")
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        faults = [f"  {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise UserError(f"{path}: the recipe has {len(faults)} fault(s):\n" + "\n".join(faults)) from error
    _check_paths(recipe, path)
    return recipe


def _check_paths(recipe: Recipe, path: Path) -> None:
    """Every annotation file and media folder must be there."""
    missing = []
    for i, source in enumerate(recipe.sources):
        if not (path.parent / source.media).is_dir():
            missing.append(f"  sources.{i}.media: {path.parent / source.media} is not a folder")
        for j, name in enumerate(source.annotations):
            if not (found := _expand(name, path.parent)):
                missing.append(f"  sources.{i}.annotations.{j}: {path.parent / name} fits no file")
            elif not all((path.parent / file).is_file() for file in found):
                missing.append(f"  sources.{i}.annotations.{j}: {path.parent / name} is not a file")
    if missing:
        raise UserError(f"{path}: the recipe names what is not there:\n" + "\n".join(missing))


def resolve(recipe: Recipe, base: Path, decoder_version: str) -> dict[str, Any]:
    """The recipe with the hashes of the files it names: equal dictionaries mean equal shards (from equal media)."""
    content: dict[str, Any] = recipe.model_dump(mode="json")
    for source, named in zip(recipe.sources, content["sources"], strict=True):
        files = source.files(base)
        named |= {"annotations": [name for name, _ in files], "annotations_sha256": [_hash(path) for _, path in files]}
    content["tokenizer_sha256"] = _hash(base / recipe.tokenizer)
    return content | {"format_version": FORMAT_VERSION, "decoder_version": decoder_version}


def _hash(path: Path) -> str:
    with reading(path):
        return sha256_file(path)


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Where two resolved recipes differ, as "key: old value -> new value"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [line for k in keys for line in differences(old.get(k), new.get(k), f"{key}.{k}" if key else k)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for i, (a, b) in enumerate(zip(old, new, strict=True)) for line in differences(a, b, f"{key}.{i}")]
    return [] if old == new else [f"{key}: {old} -> {new}"]

"""The recipe of a build: a YAML file, checked completely before annotations are read or anything is written."""

import glob
import itertools
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from data_prep.sources import find_format
from ma2mba.annotations.files import Files
from ma2mba.annotations.huggingface import DatasetFile, find_files
from ma2mba.errors import UserError
from ma2mba.exclude import Excluded, read_ids
from ma2mba.files import reading, sha256_file
from ma2mba.limits import limits, raise_limit
from ma2mba.shards.format import FORMAT_VERSION
from ma2mba.stage import Stage
from ma2mba.text import listing, read_yaml, shorten

Names = Annotated[
    list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value), Field(min_length=1)
]
MOST_FOLDERS = 100_000
"""Folders that a pattern with ** may meet: links between folders may make endlessly many."""
FormatName = Annotated[str, AfterValidator(lambda name: find_format(name).name)]


class HubDataset(BaseModel):
    """A data set in the format of the Hugging Face hub: a folder, or a name on the hub.

    `name` is the configuration (default: the data set's own default). `split` may be left out if there is only one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: str = Field(min_length=1)
    name: str | None = Field(default=None, min_length=1)
    split: str | None = Field(default=None, min_length=1)

    def files(self, base: Path, online: bool) -> list[tuple[str, DatasetFile]]:
        """Return (name, file) of every file of the split. Raise UserError if the data set or the split is not there."""
        return find_files(self.path, base, self.name, self.split, online=online)


class Source(BaseModel):
    """Annotations of one format, in files or in a data set, and the folder that contains their media.

    An annotation with `*` is a pattern: it means all matching files, in order of name. Sources with the same `name`
    (default: the format) are one data set. A sample of weight w is drawn in training w times as often as a sample of
    weight 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: FormatName
    name: str = Field(min_length=1)
    annotations: Names | None = None
    dataset: HubDataset | None = None
    media: str
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_by_format(cls, given: Any) -> Any:
        return {"name": given.get("format"), **given} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _files_or_dataset(self) -> "Source":
        if (self.annotations is None) == (self.dataset is None):
            raise ValueError("give either annotations (files) or dataset (the format of the Hugging Face hub)")
        return self

    def files(self, base: Path, online: bool = False) -> Files:
        """Return (name, file) of every annotation file, without repetition, for a recipe in the folder `base`.

        A pattern without a matching file adds nothing. Without `online`, a data set must be a folder.
        """
        if self.dataset:
            return [*self.dataset.files(base, online)]
        paths: dict[Path, str] = {}
        for given in self.annotations or []:
            for name in _expand(given, base):
                paths.setdefault(base / name, name)
        return [(name, path) for path, name in paths.items()]


def _expand(name: str, base: Path) -> list[str]:
    """Return the files that a name means, relative to `base`: for a pattern, all that match."""
    if "*" not in name:
        return [name]
    return sorted(set(_matches(base, "", name.split("/"), itertools.count(1))))


def _matches(base: Path, folder: str, parts: list[str], count: Iterator[int]) -> Iterator[str]:
    """Yield what matches a pattern below `base / folder`: what `glob` finds, which never ends where links lead back."""
    if "**" not in parts:
        yield from (os.path.join(folder, found) for found in glob.glob("/".join(parts), root_dir=base / folder))
        return
    at = parts.index("**")
    above = "/".join((*parts[:at], "")) if at else ""
    for start in glob.glob(above, root_dir=base / folder) if above else [""]:
        for inner in _folders(base, os.path.join(folder, start), (), count):
            yield from _matches(base, inner, parts[at + 1 :] or ["*"], count)


def _folders(base: Path, folder: str, above: tuple[str, ...], count: Iterator[int]) -> Iterator[str]:
    """Yield a folder and every folder in it, hidden ones excepted. A link to a folder above is not followed."""
    if next(count) > MOST_FOLDERS:
        raise UserError(
            f"{base}: an annotation pattern with ** meets {MOST_FOLDERS:,} folders. Name a folder further down"
        )
    real = os.path.realpath(base / folder)
    if real in above:
        return
    yield folder
    try:
        with os.scandir(base / folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError:  # as glob does
        return
    for name in names:
        yield from _folders(base, os.path.join(folder, name), (*above, real), count)


class Recipe(BaseModel):
    """All settings that decide the bytes of a build. Relative paths count from the folder of the recipe's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    stage: Stage
    tokenizer: str
    sources: list[Source] = Field(min_length=1)
    image_size: int = Field(default=336, ge=8, le=4096)
    fps: float = Field(default=1.0, gt=0, le=120)
    jpeg_quality: int = Field(default=95, ge=1, le=100)
    clips_per_part: int | None = Field(default=None, ge=1)
    on_damage: Literal["reject", "keep"] = "reject"
    decoder: Literal["pyav", "decord"] = "pyav"
    exclude: Excluded = []

    @field_validator("sources")
    @classmethod
    def _same_name_same_data_set(cls, sources: list[Source]) -> list[Source]:
        known: dict[str, Source] = {}
        for i, source in enumerate(sources):
            first = known.setdefault(source.name, source)
            if (first.format, first.weight) != (source.format, source.weight):
                raise ValueError(
                    f"source {i} has the same name {source.name} as an earlier source, but another format or weight. "
                    f"Rename it"
                )
        return sources


def load_recipe(path: Path, *, online: bool = False) -> Recipe:
    """Read and check a recipe. Raise UserError that lists every fault with the path of its key.

    Only with `online` may a source be a data set on the hub.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a recipe. A recipe is a mapping with the keys {', '.join(Recipe.model_fields)}.")
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        faults = [_fault(details) for details in error.errors()]
        raise UserError(listing(path, f"the recipe has {len(faults):,} faults:", faults)) from error
    _check_paths(recipe, path, online)
    return recipe


def _fault(details: Any) -> str:
    key = ".".join(shorten(str(part)) for part in details["loc"])
    message = shorten(details["msg"].removeprefix("Value error, "), 1000)
    if details["type"] == "missing":
        message = "missing. Give it a value"
    if details["type"] == "extra_forbidden":
        models: list[type[BaseModel]] = [Recipe, Source, HubDataset]
        known = models[len(details["loc"]) // 2].model_fields
        message = f"unknown key. Known keys: {', '.join(known)}"
    return f"{key}: {message}"


def _check_paths(recipe: Recipe, path: Path, online: bool) -> None:
    """Raise UserError unless the tokenizer, every annotation file, every data set and every media folder exist."""
    base = path.parent.absolute()
    missing = []
    if not (base / recipe.tokenizer).is_file():
        missing.append(f"tokenizer: {base / recipe.tokenizer}: no such tokenizer file")
    for i, source in enumerate(recipe.sources):
        if not (base / source.media).is_dir():
            missing.append(f"sources.{i}.media: {base / source.media} is not a folder")
        try:
            _ = source.dataset and source.dataset.files(base, online)
        except UserError as error:
            missing.append(f"sources.{i}.dataset: {error}")
        for j, name in enumerate(source.annotations or []):
            if not (found := _expand(name, base)):
                missing.append(f"sources.{i}.annotations.{j}: {base / name} matches no file")
            elif not all((base / file).is_file() for file in found):
                missing.append(f"sources.{i}.annotations.{j}: {base / name} is not a file")
    if isinstance(recipe.exclude, str) and not (base / recipe.exclude).is_file():
        missing.append(f"exclude: {base / recipe.exclude} is not a file")
    if missing:
        counting = f"relative paths count from the recipe's folder, {base}"
        heading = f"the recipe names missing files. Correct these keys; {counting}:"
        problems = missing if len(missing) > 1 else [f"{missing[0]}. Correct this key; {counting}"]
        raise UserError(listing(path, heading, problems))


def resolve(recipe: Recipe, base: Path, decoder_version: str, *, online: bool = False) -> dict[str, Any]:
    """Return the recipe with the hashes of its files. From the same media, equal dictionaries give equal shards.

    `clips_per_part` is None if the recipe leaves it open; the caller sets it.

    A pattern or a data set is resolved to its files, because the same files give the same shards. Files on the hub have
    no hash: their names contain the commit.
    """
    content: dict[str, Any] = recipe.model_dump(mode="json")
    for source, named in zip(recipe.sources, content["sources"], strict=True):
        files = source.files(base, online)
        paths = [file.path if isinstance(file, DatasetFile) else file for _, file in files]
        del named["dataset"]
        named |= {
            "annotations": [name for name, _ in files],
            "annotations_sha256": [_hash(path) for path in paths if isinstance(path, Path)],
        }
    content["tokenizer_sha256"] = _hash(base / recipe.tokenizer)
    del content["exclude"]
    if excluded := sorted(read_ids(recipe.exclude, base)):
        content |= {"excluded": len(excluded), "excluded_sha256": sha256("\n".join(excluded).encode()).hexdigest()}
    return content | {"format_version": FORMAT_VERSION, "decoder_version": decoder_version}


def _hash(path: Path) -> str:
    """Return the SHA-256 of a file. Raise UserError if it is too large: a file with holes may state any size."""
    with reading(path):
        if (size := path.stat().st_size) > limits().annotations_gb * 1e9:
            most = f"{limits().annotations_gb:g} GB"
            raise UserError(f"{path}: its {size / 1e9:,.0f} GB are more than {most}. {raise_limit('annotations_gb')}")
        return sha256_file(path)


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Return the differences of two resolved recipes, each as "key: old value -> new value"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [line for k in keys for line in differences(old.get(k), new.get(k), f"{key}.{k}" if key else k)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for i, (a, b) in enumerate(zip(old, new, strict=True)) for line in differences(a, b, f"{key}.{i}")]
    return [] if old == new else [f"{key}: {old} -> {new}"]

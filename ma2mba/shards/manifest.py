"""manifest.json: written last, so a folder that has one is complete."""

import json
from pathlib import Path
from typing import Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ma2mba.errors import UserError
from ma2mba.files import atomic_write, xxh3_file
from ma2mba.shards.format import FORMAT_VERSION, MANIFEST_FILE


class ShardDamaged(UserError):
    """Bytes of a shard folder are not those that were written."""


class FileEntry(BaseModel):
    """A file of the folder: its name relative to it, size in bytes and XXH3-128."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    bytes: int
    xxh3: str


class SourceEntry(BaseModel):
    """A data set of the folder: how often it is to be drawn beside the others (`weight`), and its samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    format: str
    weight: float
    samples: int


class FeatureInfo(BaseModel):
    """What the frames of a folder of features are: bf16 (tokens, width), by the encoder with this fingerprint."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tokens: int
    width: int
    encoder: str

    @property
    def frame_bytes(self) -> int:
        return self.tokens * self.width * 2


class Manifest(BaseModel):
    """What a shard folder holds. `recipe` is what it was built from, `recipe_hash` its hash."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format_version: int = FORMAT_VERSION
    kind: Literal["jpeg", "features"] = "jpeg"
    features: FeatureInfo | None = None
    image_size: int
    fps: float
    recipe: dict[str, Any]
    recipe_hash: str
    tokenizer_sha256: str
    decoder: str
    decoder_version: str
    sources: list[SourceEntry]
    files: list[FileEntry]
    samples: int
    frames: int
    tokens: int

    @model_validator(mode="after")
    def _features_are_described(self) -> "Manifest":
        if (self.kind == "features") != (self.features is not None):
            raise ValueError(f"kind {self.kind} does not agree with features {self.features}")
        return self


def hash_json(value: Any) -> str:
    """XXH3-128 of the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return xxhash.xxh3_128(text.encode()).hexdigest()


def file_entry(folder: Path, name: str) -> FileEntry:
    """Measure a file of `folder`."""
    path = folder / name
    return FileEntry(name=name, bytes=path.stat().st_size, xxh3=xxh3_file(path))


def checksum(manifest: Manifest) -> str:
    """XXH3-128 of a manifest's content: equal for folders with the same bytes in all their files."""
    return hash_json(manifest.model_dump(mode="json"))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json with its checksum, whole or not at all."""
    with atomic_write(folder / MANIFEST_FILE) as file:
        json.dump(manifest.model_dump(mode="json") | {"checksum": checksum(manifest)}, file, indent=1)


def read_manifest(folder: Path | str) -> Manifest:
    """Read and check manifest.json. Raises UserError when missing or of another version, ShardDamaged when altered."""
    path = Path(folder) / MANIFEST_FILE
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        remedy = "name a folder written by `python -m data_prep build` that ran to its end"
        raise UserError(f"{path}: not found; {remedy}") from error
    except OSError as error:
        raise ShardDamaged(f"{path}: cannot be read ({error.strerror}); make it readable") from error
    try:
        content = json.loads(text)
        version = content["format_version"]
        said = content.pop("checksum")
    except (ValueError, KeyError, TypeError) as error:
        raise ShardDamaged(f"{path}: damaged ({type(error).__name__}: {error}); build the shards again") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: format version {version}, this program reads {FORMAT_VERSION}; build the shards again"
        )
    if said != hash_json(content):
        raise ShardDamaged(f"{path}: its content does not match its checksum; build the shards again")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise ShardDamaged(f"{path}: damaged ({error}); build the shards again") from error

"""Write and read manifest.json. It is written last: a shard folder with a manifest is complete."""

import json
from pathlib import Path
from typing import Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ma2mba.errors import UserError
from ma2mba.files import atomic_write, xxh3_file
from ma2mba.shards.format import FORMAT_VERSION, MANIFEST_FILE


class ShardDamaged(UserError):
    """A shard folder does not hold the bytes that were written."""


class FileEntry(BaseModel):
    """A file of a folder: its path relative to the folder, its size in bytes and its XXH3-128."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    bytes: int
    xxh3: str


class SourceEntry(BaseModel):
    """A data set of the folder: its name, format, sampling weight and number of samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    format: str
    weight: float
    samples: int


class FeatureInfo(BaseModel):
    """The features of each frame: bf16 (tokens, width), from the encoder with the fingerprint `encoder`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tokens: int
    width: int
    encoder: str

    @property
    def frame_bytes(self) -> int:
        return self.tokens * self.width * 2


class Manifest(BaseModel):
    """The content of manifest.json. `recipe` is the build's recipe, `recipe_hash` its hash."""

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
            raise ValueError(f"kind {self.kind} is incompatible with features {self.features}")
        return self


def hash_json(value: Any) -> str:
    """Return the XXH3-128 of the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return xxhash.xxh3_128(text.encode()).hexdigest()


def file_entry(folder: Path, name: str) -> FileEntry:
    """Return the size and hash of a file in `folder`."""
    path = folder / name
    return FileEntry(name=name, bytes=path.stat().st_size, xxh3=xxh3_file(path))


def checksum(manifest: Manifest) -> str:
    """Return the XXH3-128 of a manifest's content. Folders with the same bytes in all files have the same checksum."""
    return hash_json(manifest.model_dump(mode="json"))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json with its checksum, atomically."""
    with atomic_write(folder / MANIFEST_FILE) as file:
        json.dump(manifest.model_dump(mode="json") | {"checksum": checksum(manifest)}, file, indent=1)


def read_manifest(folder: Path | str) -> Manifest:
    """Read and verify manifest.json.

    Raise UserError if it is missing or has another format version, ShardDamaged if it was altered.
    """
    path = Path(folder) / MANIFEST_FILE
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        remedy = "Give a folder that `ma2mba data build` has finished"
        raise UserError(f"{path}: not found. {remedy}") from error
    except OSError as error:
        raise ShardDamaged(f"{path}: cannot be read ({error.strerror}). Make it readable") from error
    try:
        content = json.loads(text)
        version = content["format_version"]
        stored_checksum = content.pop("checksum")
    except (ValueError, KeyError, TypeError) as error:
        raise ShardDamaged(f"{path}: damaged ({type(error).__name__}: {error}). Build the shards again") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: has format version {version}, but this program reads {FORMAT_VERSION}. Build the shards again"
        )
    if stored_checksum != hash_json(content):
        raise ShardDamaged(f"{path}: its content does not match its checksum. Build the shards again")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise ShardDamaged(f"{path}: damaged ({error}). Build the shards again") from error

"""Write and read manifest.json. It is written last: a shard folder with a manifest is complete."""

import json
from pathlib import Path
from typing import Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ma2mba.errors import UserError
from ma2mba.files import OutsideFolder, atomic_write, inside, read_bounded, xxh3_file
from ma2mba.shards.format import FORMAT_VERSION, MANIFEST_FILE, NAMES, PAYLOAD_NAME
from ma2mba.text import JSON_BYTES, parse_json

DEEPEST = 64
"""Levels of the recipe in a manifest."""
MOST = 1 << 62
"""The largest count, and the most bytes of a file."""
FRAME_BYTES = 1 << 28
"""Bytes of the features of one frame."""


class ShardDamaged(UserError):
    """A shard folder does not hold the bytes that were written."""


class FileEntry(BaseModel):
    """A file of a folder: its path relative to the folder, its size in bytes and its XXH3-128."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    bytes: int = Field(ge=0, le=MOST)
    xxh3: str

    @property
    def is_payload(self) -> bool:
        return PAYLOAD_NAME.fullmatch(self.name) is not None


class SourceEntry(BaseModel):
    """A data set of the folder: its name, format, sampling weight and number of samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    format: str
    weight: float = Field(gt=0, allow_inf_nan=False)
    samples: int = Field(ge=0, le=MOST)


class FeatureInfo(BaseModel):
    """The features of each frame: bf16 (tokens, width), from the encoder with the fingerprint `encoder`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tokens: int = Field(ge=1, le=FRAME_BYTES)
    width: int = Field(ge=1, le=FRAME_BYTES)
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
    image_size: int = Field(ge=8, le=4096)
    fps: float = Field(gt=0, le=120, allow_inf_nan=False)
    recipe: dict[str, Any]
    recipe_hash: str
    tokenizer_sha256: str
    decoder: str
    decoder_version: str
    sources: list[SourceEntry]
    files: list[FileEntry]
    samples: int = Field(ge=0, le=MOST)
    frames: int = Field(ge=0, le=MOST)
    tokens: int = Field(ge=0, le=MOST)

    @model_validator(mode="after")
    def _features_are_described(self) -> "Manifest":
        if (self.kind == "features") != (self.features is not None):
            raise ValueError(f"kind {self.kind} is incompatible with features {self.features and 'described'}")
        if self.features and self.features.frame_bytes > FRAME_BYTES:
            raise ValueError(f"features of {self.features.frame_bytes:,} bytes a frame; at most {FRAME_BYTES:,}")
        for what, names in (("sources", self.sources), ("files", self.files)):
            if len({entry.name for entry in names}) < len(names):
                raise ValueError(f"{what} has a name twice")
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
    """Read and verify manifest.json. All names that it lists stay inside the folder.

    Raise UserError if it is missing or has another format version, OutsideFolder for a name that leads out of the
    folder, ShardDamaged if it was altered.
    """
    folder = Path(folder)
    path = folder / MANIFEST_FILE
    content = _read_content(folder, path)
    version, stored_checksum = content.get("format_version"), content.pop("checksum", None)
    if version != FORMAT_VERSION and isinstance(version, int):
        raise UserError(
            f"{path}: has format version {version}, but this program reads {FORMAT_VERSION}. Build the shards again"
        )
    if stored_checksum != hash_json(content):
        raise ShardDamaged(f"{path}: its content does not match its checksum. Build the shards again")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise ShardDamaged(f"{path}: damaged ({_first(error)}). Build the shards again") from error
    for entry in manifest.files:
        _check_name(folder, entry.name, path)
    return manifest


def _read_content(folder: Path, path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_bounded(inside(folder, MANIFEST_FILE, folder), JSON_BYTES))
        if not isinstance(content, dict):
            raise ValueError("not an object")
        if not shallow(content):
            raise ValueError("nested too deeply")
    except OutsideFolder as error:
        raise ShardDamaged(f"{path}: cannot be read ({error.reason}). Copy the file itself") from error
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            raise UserError(f"{path}: not found. Give a folder that `ma2mba data build` has finished") from error
        raise ShardDamaged(str(error)) from error
    except ValueError as error:
        raise ShardDamaged(f"{path}: damaged ({error}). Build the shards again") from error
    return content


def shallow(value: Any, levels: int = DEEPEST) -> bool:
    """Return True if `value` has at most `levels` levels of lists and objects."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(shallow(item, levels - 1) for item in inner)


def _first(error: ValidationError) -> str:
    """Return the first fault of a manifest in one line."""
    fault = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(map(str, fault["loc"])) or "content"
    return f"{ascii(key)[1:-1][:80]}: {fault['msg'].removeprefix('Value error, ')}"


def _check_name(folder: Path, name: str, path: Path) -> None:
    """Raise OutsideFolder for a name that leads out of the folder, ShardDamaged for a name that shards do not have."""
    inside(folder, name, path)
    if name not in NAMES and not PAYLOAD_NAME.fullmatch(name):
        raise ShardDamaged(f"{path}: lists {name!r}, which is no file of a shard folder. Build the shards again")

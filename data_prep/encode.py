"""Pictures of a shard folder -> features of a frozen encoder, as a shard folder of the kind "features".

Made by `features.py`; this is the way in, and the end: index, report, manifest.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from data_prep.features import encode_parts, split_parts
from data_prep.parts import WORK_FOLDER, load_fragment, load_rows
from data_prep.workfolder import check_folder, claim, remove_leftovers
from ma2mba.errors import UserError
from ma2mba.files import atomic_path, atomic_write
from ma2mba.model.pretrained import load_vision
from ma2mba.model.vision import VisionEncoder, fingerprint
from ma2mba.shards.format import (
    INDEX_FILE,
    ORIGIN_FILE,
    REJECTS_FILE,
    REPORT_FILE,
    TOKENIZER_FILE,
)
from ma2mba.shards.manifest import FeatureInfo, Manifest, checksum, file_entry, hash_json, write_manifest
from ma2mba.shards.reader import ShardReader
from ma2mba.shards.writer import part_name, write_index


def encode(
    shards: Path,
    encoder_source: str,
    out: Path,
    *,
    batch: int = 64,
    device: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Encode a folder of pictures, or go on with one that was stopped; returns the report.

    `encoder_source` is a CLIP folder or one of our model folders; it runs in bf16 on `device` (by default a GPU if
    there is one). Raises UserError for a folder of features, an encoder of another image size, or an `out` that holds
    something else.
    """
    reader = ShardReader(shards)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    encoder = load_vision(encoder_source)
    info = check_encoder(reader, encoder, encoder_source)
    resolved = reader.manifest.recipe | {"features": info.model_dump(), "batch": batch, "device": device}
    resolved["shards"] = checksum(reader.manifest)
    if check_folder(out, resolved):
        return json.loads((out / REPORT_FILE).read_bytes()) | {"already_built": True}
    encoder = encoder.to(device=device, dtype=torch.bfloat16).eval().requires_grad_(False)
    parts = split_parts(reader.rows)
    with claim(out, resolved):
        missing = {part for part in parts if load_fragment(out, part) is None}
        encode_parts(reader, encoder, info, out, missing, batch=batch, threads=threads or os.cpu_count() or 1)
        report = _finish(reader, out, resolved, info, sorted(parts), shards, encoder_source)
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    return report | {"already_built": False}


def encode_again(
    shards: Path, encoder_source: str, out: Path, manifest: Manifest, names: set[str] | None, threads: int
) -> None:
    """Encode into `out` the payload files `names` of a folder with this manifest; None: all, with index and report.

    Raises UserError when pictures or encoder are no longer those that the folder was made of.
    """
    reader = ShardReader(shards)
    encoder = load_vision(encoder_source)
    info = check_encoder(reader, encoder, encoder_source)
    recipe = manifest.recipe
    if info != manifest.features:
        raise UserError(f"{encoder_source}: no longer the encoder that the features were made by")
    was = reader.manifest.recipe | {"shards": checksum(reader.manifest)}
    if any(recipe.get(key, value if key == "shards" else None) != value for key, value in was.items()):
        raise UserError(f"{shards}: no longer the pictures that the features were made of")
    encoder = encoder.to(device=recipe["device"], dtype=torch.bfloat16).eval().requires_grad_(False)
    parts = split_parts(reader.rows)
    wanted = {part for part in parts if names is None or part_name(part) in names}
    with claim(out, recipe):
        encode_parts(reader, encoder, info, out, wanted, batch=recipe["batch"], threads=threads)
        if names is None:
            _finish(reader, out, recipe, info, sorted(parts), shards, encoder_source)


def check_encoder(reader: ShardReader, encoder: VisionEncoder, source: str) -> FeatureInfo:
    """What the features will be. Raises UserError when the encoder cannot see these shards."""
    if reader.manifest.kind != "jpeg":
        raise UserError(f"{reader.folder}: holds features already; name the shards that they were made of")
    if encoder.config.image_size != reader.manifest.image_size:
        raise UserError(
            f"{source}: sees {encoder.config.image_size} pixels but the frames of {reader.folder} are "
            f"{reader.manifest.image_size} wide; build the shards with image_size {encoder.config.image_size}"
        )
    return FeatureInfo(tokens=encoder.config.tokens_per_frame, width=encoder.config.width, encoder=fingerprint(encoder))


def _finish(
    reader: ShardReader,
    out: Path,
    resolved: dict[str, Any],
    info: FeatureInfo,
    parts: list[int],
    shards: Path,
    encoder: str,
) -> dict[str, Any]:
    """Write index, report and, last, the manifest; rejects and tokenizer are those of the pictures."""
    remove_leftovers(out)
    rows = [row for part in parts for row in load_rows(out, part)]
    payload = [entry for part in parts if (fragment := load_fragment(out, part)) and (entry := fragment.payload)]
    report = json.loads((reader.folder / REPORT_FILE).read_bytes()) if (reader.folder / REPORT_FILE).is_file() else {}
    report = report | {"feature_bytes_per_frame": info.frame_bytes}
    write_index(out / INDEX_FILE, rows)
    for name in (REJECTS_FILE, TOKENIZER_FILE):
        if (reader.folder / name).is_file():
            with atomic_path(out / name) as temporary:
                shutil.copyfile(reader.folder / name, temporary)
    with atomic_write(out / REPORT_FILE) as file:
        json.dump(report, file, indent=1)
    with atomic_write(out / ORIGIN_FILE) as file:
        json.dump(
            {
                "shards": str(shards.resolve()),
                "encoder": str(Path(encoder).resolve()) if Path(encoder).exists() else encoder,
            },
            file,
        )
    names = [name for name in (INDEX_FILE, REJECTS_FILE, REPORT_FILE, TOKENIZER_FILE) if (out / name).is_file()]
    changes = {"kind": "features", "features": info, "recipe": resolved, "recipe_hash": hash_json(resolved)}
    changes["files"] = [file_entry(out, name) for name in names] + payload
    write_manifest(out, reader.manifest.model_copy(update=changes))
    return report

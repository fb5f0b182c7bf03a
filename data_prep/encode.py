"""Encode a shard folder of pictures with a frozen vision encoder, into a shard folder of the kind "features".

This file checks the input, and writes index, report and manifest. `features.py` computes the features.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from data_prep.features import encode_shards, rows_by_shard
from data_prep.origin import write_origin
from data_prep.shard import WORK_FOLDER, load_finished, load_rows
from data_prep.workfolder import check_folder, claim, read_report, remove_leftovers
from ma2mba.errors import UserError
from ma2mba.files import atomic_path, atomic_write
from ma2mba.model.published import load_vision
from ma2mba.model.vision import VisionEncoder, fingerprint
from ma2mba.shards.format import INDEX_FILE, REJECTS_FILE, REPORT_FILE, TOKENIZER_FILE
from ma2mba.shards.manifest import FeatureInfo, Manifest, checksum, file_entry, hash_json, write_manifest
from ma2mba.shards.reader import ShardReader
from ma2mba.shards.writer import payload_name, write_index


def encode(
    shards: Path,
    encoder_source: str,
    out: Path,
    *,
    batch: int = 64,
    device: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Encode a folder of pictures, or resume an interrupted run; return the report.

    `encoder_source` is a CLIP folder or a model folder of this project. The encoder runs in bf16 on `device` (default:
    a GPU if there is one). Raise UserError if `shards` holds features, if the encoder needs another image size, or if
    `out` holds something else.
    """
    reader = ShardReader(shards)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    encoder = load_vision(encoder_source)
    info = check_encoder(reader, encoder, encoder_source)
    resolved = reader.manifest.recipe | {"features": info.model_dump(), "batch": batch, "device": device}
    resolved["shards"] = checksum(reader.manifest)
    if check_folder(out, resolved):
        return read_report(out) | {"already_built": True}
    encoder = encoder.to(device=device, dtype=torch.bfloat16).eval().requires_grad_(False)
    numbers = rows_by_shard(reader.rows).keys()
    with claim(out, resolved):
        missing = {shard for shard in numbers if load_finished(out, shard) is None}
        encode_shards(reader, encoder, info, out, missing, batch=batch, threads=threads or os.cpu_count() or 1)
        source = str(Path(encoder_source).resolve()) if Path(encoder_source).exists() else encoder_source
        write_origin(out, {"shards": str(reader.folder.resolve()), "encoder": source})
        report = _finish(reader, out, resolved, info, sorted(numbers))
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    return report | {"already_built": False}


def reencode(
    shards: Path, encoder_source: str, out: Path, manifest: Manifest, names: set[str] | None, threads: int
) -> None:
    """Encode into `out` the payload files `names` of a folder with this manifest; None: all files, index and report.

    Raise UserError if the pictures or the encoder have changed since the folder was encoded.
    """
    reader = ShardReader(shards)
    encoder = load_vision(encoder_source)
    info = check_encoder(reader, encoder, encoder_source)
    recipe = manifest.recipe
    if info != manifest.features:
        raise UserError(f"{encoder_source}: the encoder has changed since the features were computed")
    now = reader.manifest.recipe | {"shards": checksum(reader.manifest)}
    # features of earlier versions have no checksum of their pictures
    if any(recipe.get(key, value if key == "shards" else None) != value for key, value in now.items()):
        raise UserError(f"{shards}: the pictures have changed since the features were computed")
    encoder = encoder.to(device=recipe["device"], dtype=torch.bfloat16).eval().requires_grad_(False)
    numbers = rows_by_shard(reader.rows).keys()
    wanted = {shard for shard in numbers if names is None or payload_name(shard) in names}
    with claim(out, recipe):
        encode_shards(reader, encoder, info, out, wanted, batch=recipe["batch"], threads=threads)
        if names is None:
            _finish(reader, out, recipe, info, sorted(numbers))


def check_encoder(reader: ShardReader, encoder: VisionEncoder, source: str) -> FeatureInfo:
    """Return the shape and the origin of the features. Raise UserError if the encoder does not fit these shards."""
    if reader.manifest.kind != "jpeg":
        raise UserError(f"{reader.folder}: holds features already. Name the shard folder of the pictures")
    if encoder.config.image_size != reader.manifest.image_size:
        raise UserError(
            f"{source}: needs frames of {encoder.config.image_size} pixels, but the frames of {reader.folder} have "
            f"{reader.manifest.image_size}. Build the shards with image_size: {encoder.config.image_size}"
        )
    return FeatureInfo(tokens=encoder.config.tokens_per_frame, width=encoder.config.width, encoder=fingerprint(encoder))


def _finish(
    reader: ShardReader, out: Path, resolved: dict[str, Any], info: FeatureInfo, shards: list[int]
) -> dict[str, Any]:
    """Write index, report and, last, the manifest; copy rejects and tokenizer. Return the report."""
    remove_leftovers(out)
    rows = [row for shard in shards for row in load_rows(out, shard)]
    payload = [entry for shard in shards if (found := load_finished(out, shard)) and (entry := found.payload)]
    listed = {entry.name for entry in reader.manifest.files}
    report = read_report(reader.folder) if REPORT_FILE in listed else {}
    report = report | {"feature_bytes_per_frame": info.frame_bytes}
    write_index(out / INDEX_FILE, rows)
    for name in (REJECTS_FILE, TOKENIZER_FILE):
        if name in listed:
            with atomic_path(out / name) as temporary:
                shutil.copyfile(reader.folder / name, temporary)
    with atomic_write(out / REPORT_FILE) as file:
        json.dump(report, file, indent=1)
    names = [name for name in (INDEX_FILE, REJECTS_FILE, REPORT_FILE, TOKENIZER_FILE) if (out / name).is_file()]
    changes = {"kind": "features", "features": info, "recipe": resolved, "recipe_hash": hash_json(resolved)}
    changes["files"] = [file_entry(out, name) for name in names] + payload
    write_manifest(out, reader.manifest.model_copy(update=changes))
    return report

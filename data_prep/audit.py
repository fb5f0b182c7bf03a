"""Re-read a shard folder, report what is damaged, and rebuild the damaged files from their sources."""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.audit_report import AuditReport
from data_prep.build import finish, split_clips
from data_prep.reading import read_sources
from data_prep.recipe import differences, load_recipe, resolve
from data_prep.running import build_missing
from data_prep.shard import Job, load_finished
from data_prep.workfolder import claim
from ma2mba.errors import UserError
from ma2mba.files import fsync, sha256_file
from ma2mba.shards.format import INDEX_FILE, MANIFEST_FILE, ORIGIN_FILE, REJECTS_FILE, REPORT_FILE, TOKENIZER_FILE
from ma2mba.shards.manifest import Manifest, ShardDamaged, file_entry, hash_json, read_manifest
from ma2mba.shards.reader import Damage, find_damage
from ma2mba.shards.writer import payload_name
from ma2mba.video.decode import decoder_version
from ma2mba.video.memory import MEMORY
from ma2mba.video.pool import STALL

REPAIR_FOLDER = ".repair"
ABOUT_ALL_SHARDS = {INDEX_FILE, REJECTS_FILE, REPORT_FILE}
"""Files that describe all shards: to rebuild one of them, all shards must be rebuilt."""


def audit(
    folder: Path, *, repair: bool = False, source: Path | None = None, workers: int = 1, online: bool = False
) -> AuditReport:
    """Re-read a shard folder and return what is damaged; with `repair`, rebuild the damaged files from their sources.

    `source`: where the recipe is now (for features: the shard folder of pictures), if it was moved since the build.
    `online`: sources may be data sets on the Hugging Face hub. A repair replaces a file only if the rebuilt file has
    the bytes that the manifest lists. Raise UserError if the folder holds no shards.
    """
    try:
        manifest = read_manifest(folder)
    except ShardDamaged as error:
        report = AuditReport(folder, damage=[Damage(MANIFEST_FILE, "", str(error).split(": ", 1)[1])])
        if repair:
            report.unrepaired[MANIFEST_FILE] = "no other file says what the files should contain. Build a new folder"
        return report
    report = AuditReport(folder, len(manifest.files), manifest.samples, sum(entry.bytes for entry in manifest.files))
    report.damage = find_damage(folder)
    if repair and report.damage:
        _repair(folder, manifest, report, source, workers, online)
    return report


def _repair(
    folder: Path, manifest: Manifest, report: AuditReport, source: Path | None, workers: int, online: bool
) -> None:
    """Rebuild the damaged files in REPAIR_FOLDER, move them into place, and note the outcome in `report`."""
    files = {damage.file for damage in report.damage}
    work = folder / REPAIR_FOLDER
    shutil.rmtree(work, ignore_errors=True)
    try:
        rebuild = partial(_rebuild_pictures, online=online) if manifest.kind == "jpeg" else _rebuild_features
        origin = _origin(folder, manifest, source)
        rebuild(work, manifest, origin, files, workers)
        entries = {entry.name: entry for entry in manifest.files}
        for name in sorted(files):
            if (work / name).is_file() and file_entry(work, name) == entries[name]:
                (folder / name).parent.mkdir(exist_ok=True)
                fsync(work / name)
                os.replace(work / name, folder / name)
                fsync((folder / name).parent)
                report.repaired.append(name)
            else:
                report.unrepaired[name] = "the rebuilt file has other bytes: media, libraries or the device changed"
    except (UserError, OSError) as error:
        report.unrepaired |= {name: str(error) for name in files if name not in report.repaired}
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _origin(folder: Path, manifest: Manifest, source: Path | None) -> dict[str, Any]:
    """Return the content of origin.json, with `source` in place of the recorded path.

    Raise UserError if the path is unknown or does not exist.
    """
    key = "recipe" if manifest.kind == "jpeg" else "shards"
    try:
        origin: dict[str, Any] = dict(json.loads((folder / ORIGIN_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        origin = {}
    if source:
        origin[key] = str(source)
    if key not in origin:
        raise UserError(f"{ORIGIN_FILE} does not say where the {key} is. Name the {key} with --source")
    if not Path(origin[key]).exists():
        raise UserError(f"{origin[key]}: does not exist any more. Name the {key} with --source")
    return origin


def _rebuild_pictures(
    work: Path, manifest: Manifest, origin: dict[str, Any], files: set[str], workers: int, *, online: bool
) -> None:
    """Rebuild `files` of a folder of pictures into `work`. Raise UserError if the recipe has changed."""
    recipe_path = Path(origin["recipe"])
    recipe, base = load_recipe(recipe_path, online=online), recipe_path.parent
    resolved = resolve(recipe, base, decoder_version(recipe.decoder), online=online)
    if changes := differences(manifest.recipe, resolved):
        raise UserError(f"{recipe_path}: the recipe has changed since the build ({'; '.join(changes)})")
    reading = read_sources(recipe, base, online=online)
    tokenizer, memory = (base / recipe.tokenizer).resolve(), int(origin.get("memory", MEMORY))
    job = Job(work, recipe, hash_json(resolved), tokenizer, memory)
    shards = split_clips(reading.clips, recipe.clips_per_part)
    wanted = [shard for shard in range(len(shards)) if files & ABOUT_ALL_SHARDS or payload_name(shard) in files]
    with claim(work, resolved):
        build_missing(job, shards, wanted, workers, STALL, "local")
        if files & ABOUT_ALL_SHARDS:
            finished = [found for shard in range(len(shards)) if (found := load_finished(work, shard))]
            finish(job, resolved, reading, finished, recipe_path)
    _copy_tokenizer(job.tokenizer, work, manifest)


def _rebuild_features(work: Path, manifest: Manifest, origin: dict[str, Any], files: set[str], workers: int) -> None:
    """Rebuild `files` of a folder of features into `work`. Raise UserError if the encoder's device is not here."""
    import torch

    from data_prep.encode import reencode

    device = str(manifest.recipe["device"])
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"the features were computed on {device}, but this machine has no GPU. Repair on one with a GPU"
        )
    wanted = None if files & ABOUT_ALL_SHARDS else files
    reencode(Path(origin["shards"]), origin.get("encoder", ""), work, manifest, wanted, workers)
    _copy_tokenizer(Path(origin["shards"]) / TOKENIZER_FILE, work, manifest)


def _copy_tokenizer(tokenizer: Path, work: Path, manifest: Manifest) -> None:
    """Copy the tokenizer into `work` if it is still the tokenizer of the build."""
    if sha256_file(tokenizer) == manifest.tokenizer_sha256:
        work.mkdir(exist_ok=True)
        shutil.copyfile(tokenizer, work / TOKENIZER_FILE)

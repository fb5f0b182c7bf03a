"""Re-read a shard folder, name what is damaged, and make exactly that again from its sources."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from data_prep.audit_report import AuditReport
from data_prep.build import finish, split
from data_prep.parts import Job, load_fragment
from data_prep.reading import read_sources
from data_prep.recipe import differences, load_recipe, resolve
from data_prep.running import build_missing
from data_prep.workfolder import claim
from ma2mba.errors import UserError
from ma2mba.files import fsync, sha256_file
from ma2mba.shards.format import INDEX_FILE, MANIFEST_FILE, ORIGIN_FILE, REJECTS_FILE, REPORT_FILE, TOKENIZER_FILE
from ma2mba.shards.manifest import Manifest, ShardDamaged, file_entry, hash_json, read_manifest
from ma2mba.shards.reader import Damage, find_damage
from ma2mba.shards.writer import part_name
from ma2mba.video.decode import decoder_version
from ma2mba.video.limits import MEMORY
from ma2mba.video.pool import STALL

REPAIR_FOLDER = ".repair"
NEED_ALL = {INDEX_FILE, REJECTS_FILE, REPORT_FILE}
"""Files that tell of every part: to make one again every part must be made again."""


def audit(folder: Path, *, repair: bool = False, source: Path | None = None, workers: int = 1) -> AuditReport:
    """Re-read everything; with `repair` make the damaged files again from the sources.

    `source` is where the recipe (for features: the folder of pictures) lies if it was moved since the build.
    A file is replaced only by one with the bytes that the manifest names. Raises UserError where there are no shards.
    """
    try:
        manifest = read_manifest(folder)
    except ShardDamaged as error:
        found = AuditReport(folder, damage=[Damage(MANIFEST_FILE, "", str(error).split(": ", 1)[1])])
        if repair:
            found.unrepaired[MANIFEST_FILE] = "nothing else says what the files should be; build a new folder"
        return found
    found = AuditReport(folder, len(manifest.files), manifest.samples, sum(entry.bytes for entry in manifest.files))
    found.damage = find_damage(folder)
    if repair and found.damage:
        _repair(folder, manifest, found, source, workers)
    return found


def _repair(folder: Path, manifest: Manifest, found: AuditReport, source: Path | None, workers: int) -> None:
    files = {damage.file for damage in found.damage}
    work = folder / REPAIR_FOLDER
    shutil.rmtree(work, ignore_errors=True)
    try:
        make = _pictures_again if manifest.kind == "jpeg" else _features_again
        origin = _origin(folder, manifest, source)
        make(work, manifest, origin, files, workers)
        entries = {entry.name: entry for entry in manifest.files}
        for name in sorted(files):
            if (work / name).is_file() and file_entry(work, name) == entries[name]:
                (folder / name).parent.mkdir(exist_ok=True)
                fsync(work / name)
                os.replace(work / name, folder / name)
                fsync((folder / name).parent)
                found.repaired.append(name)
            else:
                found.unrepaired[name] = "its sources give other bytes now: media, libraries or the device have changed"
    except (UserError, OSError) as error:
        found.unrepaired |= {name: str(error) for name in files if name not in found.repaired}
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _origin(folder: Path, manifest: Manifest, source: Path | None) -> dict[str, Any]:
    key = "recipe" if manifest.kind == "jpeg" else "shards"
    try:
        origin: dict[str, Any] = dict(json.loads((folder / ORIGIN_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        origin = {}
    if source:
        origin[key] = str(source)
    if key not in origin:
        raise UserError(f"{ORIGIN_FILE} does not say where the {key} lies; name it with --source")
    if not Path(origin[key]).exists():
        raise UserError(f"{origin[key]}: no longer there; name the {key} with --source")
    return origin


def _pictures_again(work: Path, manifest: Manifest, origin: dict[str, Any], files: set[str], workers: int) -> None:
    recipe_path = Path(origin["recipe"])
    recipe, base = load_recipe(recipe_path), recipe_path.parent
    resolved = resolve(recipe, base, decoder_version(recipe.decoder))
    if changes := differences(manifest.recipe, resolved):
        raise UserError(f"{recipe_path}: no longer what the shards were built by ({'; '.join(changes)})")
    reading = read_sources(recipe, base)
    tokenizer, memory = (base / recipe.tokenizer).resolve(), int(origin.get("memory", MEMORY))
    job = Job(work, recipe, hash_json(resolved), tokenizer, memory)
    parts = split(reading.clips, recipe.clips_per_part)
    wanted = [part for part in range(len(parts)) if files & NEED_ALL or part_name(part) in files]
    with claim(work, resolved):
        build_missing(job, parts, wanted, workers, STALL, "local")
        if files & NEED_ALL:
            fragments = [fragment for part in range(len(parts)) if (fragment := load_fragment(work, part))]
            finish(job, resolved, reading, fragments, recipe_path)
    _copy_tokenizer(job.tokenizer, work, manifest)


def _features_again(work: Path, manifest: Manifest, origin: dict[str, Any], files: set[str], workers: int) -> None:
    import torch

    from data_prep.encode import encode_again

    device = str(manifest.recipe["device"])
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"the features were made on {device}, which this machine lacks; repair them where there is one")
    wanted = None if files & NEED_ALL else files
    encode_again(Path(origin["shards"]), origin.get("encoder", ""), work, manifest, wanted, workers)
    _copy_tokenizer(Path(origin["shards"]) / TOKENIZER_FILE, work, manifest)


def _copy_tokenizer(tokenizer: Path, work: Path, manifest: Manifest) -> None:
    if sha256_file(tokenizer) == manifest.tokenizer_sha256:
        work.mkdir(exist_ok=True)
        shutil.copyfile(tokenizer, work / TOKENIZER_FILE)

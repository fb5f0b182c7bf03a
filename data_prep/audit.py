"""Re-read a shard folder, report what is damaged, and rebuild the damaged files from their sources."""

import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.audit_report import AuditReport
from data_prep.build import finish, split_clips
from data_prep.origin import read_origin
from data_prep.parts import MOST, recorded
from data_prep.reading import read_sources
from data_prep.recipe import differences, load_recipe, resolve
from data_prep.running import build_missing
from data_prep.shard import Job, load_finished
from data_prep.workfolder import claim
from ma2mba.data.frames import features_problem, picture_problem
from ma2mba.errors import UserError
from ma2mba.files import fsync, refuse_link, sha256_file
from ma2mba.limits import limits, raise_limit
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
    folder: Path,
    *,
    repair: bool = False,
    source: Path | None = None,
    encoder: str | None = None,
    workers: int = 1,
    online: bool = False,
) -> AuditReport:
    """Re-read a shard folder and return what is damaged; with `repair`, rebuild the damaged files from their sources.

    `source`: the recipe (for features: the shard folder of pictures); `encoder`: the vision encoder of features. They
    are needed unless this user has built the folder here from the paths in its origin.json.
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
    report.damage = find_damage(folder, _frame_problem)
    if not any(damage.file == TOKENIZER_FILE for damage in report.damage):
        report.damage += _other_tokenizer(folder, manifest)
    if repair and report.damage:
        given = {"shards" if manifest.kind == "features" else "recipe": source and str(source), "encoder": encoder}
        _repair(folder, manifest, report, {key: path for key, path in given.items() if path}, workers, online)
    return report


def _frame_problem(frame: bytes, manifest: Manifest) -> str:
    problem = features_problem(frame) if manifest.features else picture_problem(frame, manifest.image_size)
    return f"a frame {problem}" if problem else ""


def _other_tokenizer(folder: Path, manifest: Manifest) -> list[Damage]:
    """Return damage if the folder's tokenizer is not the tokenizer that made its token ids."""
    path = folder / TOKENIZER_FILE
    listed = any(entry.name == TOKENIZER_FILE for entry in manifest.files)
    if listed and sha256_file(path) != manifest.tokenizer_sha256:
        return [Damage(TOKENIZER_FILE, "", "is not the tokenizer that made the token ids")]
    return []


def _repair(
    folder: Path, manifest: Manifest, report: AuditReport, given: dict[str, str], workers: int, online: bool
) -> None:
    """Rebuild the damaged files in REPAIR_FOLDER, move them into place, and note the outcome in `report`."""
    files = {damage.file for damage in report.damage}
    work = folder / REPAIR_FOLDER
    refuse_link(work)
    shutil.rmtree(work, ignore_errors=True)
    try:
        rebuild = partial(_rebuild_pictures, online=online) if manifest.kind == "jpeg" else _rebuild_features
        origin = _origin(folder, manifest, given)
        report.sources = [f"{key} {origin[key]}" for key in _paths_of(manifest)]
        rebuild(work, manifest, origin, files, workers)
        entries = {entry.name: entry for entry in manifest.files}
        for name in sorted(files):
            if (work / name).is_file() and file_entry(work, name) == entries.get(name):
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


def _paths_of(manifest: Manifest) -> tuple[str, ...]:
    return ("recipe",) if manifest.kind == "jpeg" else ("shards", "encoder")


def _origin(folder: Path, manifest: Manifest, given: dict[str, str]) -> dict[str, Any]:
    """Return the paths to rebuild from: those that are `given`, and those in origin.json if this user wrote it.

    Raise UserError if a path is unknown, comes from somebody else, or does not exist.
    """
    recorded, own = read_origin(folder)
    for key in _paths_of(manifest):
        option = "--encoder" if key == "encoder" else "--source"
        if key in given:
            continue
        if key not in recorded:
            raise UserError(f"{ORIGIN_FILE} does not say where the {key} is. Name the {key} with {option}")
        if key != "encoder" and not Path(recorded[key]).exists():
            raise UserError(f"{recorded[key]!r}: does not exist any more. Name the {key} with {option}")
        if not own:
            raise UserError(
                f"{ORIGIN_FILE} names the {key} {recorded[key]!r}, but you did not write this file on this machine, so "
                f"nothing is read from there. If you trust the {key}, name it with {option}"
            )
    origin = recorded | given
    if not Path(origin[_paths_of(manifest)[0]]).exists():
        raise UserError(f"{origin[_paths_of(manifest)[0]]}: does not exist. Name the right path with --source")
    return origin


def _rebuild_pictures(
    work: Path, manifest: Manifest, origin: dict[str, Any], files: set[str], workers: int, *, online: bool
) -> None:
    """Rebuild `files` of a folder of pictures into `work`. Raise UserError if the recipe has changed."""
    recipe_path = Path(origin["recipe"])
    recipe, base = load_recipe(recipe_path, online=online), recipe_path.parent
    resolved = resolve(recipe, base, decoder_version(recipe.decoder), online=online)
    resolved["clips_per_part"] = recipe.clips_per_part or recorded(manifest.recipe) or MOST
    if changes := differences(manifest.recipe, resolved):
        raise UserError(f"{recipe_path}: the recipe has changed since the build ({'; '.join(changes)})")
    reading = read_sources(recipe, base, online=online)
    tokenizer, memory = (base / recipe.tokenizer).resolve(), int(origin.get("memory", MEMORY))
    job = Job(work, recipe, hash_json(resolved), tokenizer, memory)
    shards = split_clips(reading.clips, resolved["clips_per_part"])
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

    device, batch = manifest.recipe.get("device"), manifest.recipe.get("batch")
    if not isinstance(device, str) or not re.fullmatch(r"(cpu|cuda)(:[0-9]{1,3})?", device):
        raise UserError(f"the features were computed on the device {device!r}, which this program does not have")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"the features were computed on {device}, but this machine has no GPU. Repair on one with a GPU"
        )
    most = int(limits().frames_gb * 1e9 / (3 * manifest.image_size**2))
    if not isinstance(batch, int) or not 1 <= batch <= most:
        raise UserError(
            f"the features were computed in batches of {batch}, not 1 to {most}. {raise_limit('frames_gb')}"
        )
    wanted = None if files & ABOUT_ALL_SHARDS else files
    reencode(Path(origin["shards"]), origin["encoder"], work, manifest, wanted, workers)
    _copy_tokenizer(Path(origin["shards"]) / TOKENIZER_FILE, work, manifest)


def _copy_tokenizer(tokenizer: Path, work: Path, manifest: Manifest) -> None:
    """Copy the tokenizer into `work` if it is still the tokenizer of the build."""
    if sha256_file(tokenizer) == manifest.tokenizer_sha256:
        work.mkdir(exist_ok=True)
        shutil.copyfile(tokenizer, work / TOKENIZER_FILE)

"""Build a shard folder from a recipe: read annotations, build shards in parallel, then list them in a manifest."""

import json
import logging
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.clips import Clip, Reject
from data_prep.lengths import lengths
from data_prep.origin import write_origin
from data_prep.parts import samples_per_shard
from data_prep.reading import Reading, read_sources
from data_prep.recipe import Recipe, load_recipe, resolve
from data_prep.running import Share, build_missing
from data_prep.shard import WORK_FOLDER, FinishedShard, Job, load_finished, load_rows
from data_prep.workfolder import (
    Busy,
    check_folder,
    claim,
    read_rejects,
    read_report,
    remove_leftovers,
    samples_per_shard_in,
)
from ma2mba.errors import UserError
from ma2mba.files import atomic_path, atomic_write
from ma2mba.model.conversation import load_tokenizer
from ma2mba.shards.format import INDEX_FILE, REJECTS_FILE, REPORT_FILE, TOKENIZER_FILE, IndexRow
from ma2mba.shards.manifest import Manifest, SourceEntry, file_entry, hash_json, write_manifest
from ma2mba.shards.writer import write_index
from ma2mba.video.decode import decoder_version
from ma2mba.video.memory import MEMORY
from ma2mba.video.pool import STALL

log = logging.getLogger(__name__)
LENGTHS_PICTURE = "lengths.png"
"""A chart of the sample lengths, for people. The manifest does not list it."""
Result = tuple[dict[str, Any], list[Reject]]
"""The report of a build, and its rejects."""


def build(
    recipe_path: Path,
    out: Path,
    workers: int,
    stall: float = STALL,
    memory: int = MEMORY,
    *,
    executor: str = "local",
    share: Share | None = None,
    merge: bool = False,
    online: bool = False,
) -> Result:
    """Build a shard folder, or resume an interrupted build; return the report and the rejects.

    `executor` is "local" (`workers` processes on this machine) or "ray". With `share`, build only its shards; with
    `merge`, build none. Both write the manifest if all shards are finished; otherwise `share` returns a report with
    `parts_missing`, the number of missing shards. In the report, `already_built` is True if there was nothing to do.
    With `online`, sources may be data sets on the Hugging Face hub.
    Raise UserError if the recipe is invalid, if the folder holds something else, or if no sample can be built; the
    last leaves nothing in `out`. Raise OSError if `out` cannot be written.
    """
    recipe = load_recipe(recipe_path, online=online)
    base = recipe_path.parent
    tokenizer = (base / recipe.tokenizer).resolve()
    load_tokenizer(tokenizer)
    resolved = resolve(recipe, base, decoder_version(recipe.decoder), online=online)
    resolved["clips_per_part"] = recipe.clips_per_part or samples_per_shard_in(out)
    if check_folder(out, resolved):
        return _finished(out)
    if merge and not (out / WORK_FOLDER).is_dir() and not check_folder(out, resolved):
        raise UserError(f"{out}: no shard was built here. Name the folder that the builds with --part wrote")
    reading = read_sources(recipe, base, online=online)
    if not reading.clips:
        raise _no_valid_sample(recipe_path, reading.rejects)
    resolved["clips_per_part"] = resolved["clips_per_part"] or samples_per_shard(len(reading.clips))
    job = Job(out, recipe, hash_json(resolved), tokenizer, memory)
    shards = split_clips(reading.clips, resolved["clips_per_part"])
    log.debug(
        "annotations: %d samples in %d shards, %d rejected", len(reading.clips), len(shards), len(reading.rejects)
    )
    if not merge:
        with claim(out, resolved, shared=share is not None):
            if check_folder(out, resolved):
                return _finished(out)
            wanted = (share or Share(0, 1)).shards(len(shards))
            build_missing(job, shards, wanted, workers, stall, executor)
    done = _finish_if_complete(job, resolved, reading, len(shards), recipe_path, alone=share is None)
    return done or _unfinished(out, resolved, len(shards), merge)


def _unfinished(out: Path, resolved: dict[str, Any], shards: int, merge: bool) -> Result:
    """Return how many shards are missing, or the finished build if another process has just finished it.

    Raise UserError if shards are missing and `merge` needs all of them.
    """
    missing = sum(load_finished(out, shard) is None for shard in range(shards))
    if check_folder(out, resolved):
        return _finished(out)
    if merge:
        raise UserError(f"{out}: {missing} of {shards} shards are not built yet. Build them with --part, then merge")
    return {"already_built": False, "parts": shards, "parts_missing": missing}, []


def _finish_if_complete(
    job: Job, resolved: dict[str, Any], reading: Reading, shards: int, recipe_path: Path, *, alone: bool
) -> Result | None:
    """Finish the build if all `shards` are finished.

    Return None if shards are missing. Unless `alone`, also return None while other processes still write.
    """
    try:
        with claim(job.out, resolved):
            if check_folder(job.out, resolved):
                return _finished(job.out)
            finished = [found for shard in range(shards) if (found := load_finished(job.out, shard))]
            if len(finished) < shards:
                return None
            write_origin(job.out, {"recipe": str(recipe_path.resolve()), "memory": job.memory})
            report, rejects = finish(job, resolved, reading, finished, recipe_path)
            shutil.rmtree(job.out / WORK_FOLDER, ignore_errors=True)
            return report | {"already_built": False}, rejects
    except Busy:
        if alone:
            raise
        return None


def _finished(out: Path) -> Result:
    """Return the report and the rejects that a finished build has written. Raise UserError if they are damaged."""
    return read_report(out) | {"already_built": True}, read_rejects(out)


def split_clips(clips: list[Clip], size: int) -> list[list[Clip]]:
    """Return the clips of each shard: `size` consecutive clips, independent of the number of workers."""
    return [clips[i : i + size] for i in range(0, len(clips), size)]


def finish(
    job: Job, resolved: dict[str, Any], reading: Reading, finished: list[FinishedShard], recipe_path: Path
) -> Result:
    """Write index, rejects, report, tokenizer and, last, the manifest; return the report and the rejects."""
    out = job.out
    rows = [row for shard in range(len(finished)) for row in load_rows(out, shard)]
    rejects = reading.rejects + [reject for shard in finished for reject in shard.rejects]
    if not rows:
        shutil.rmtree(out)
        raise _no_valid_sample(recipe_path, rejects)
    remove_leftovers(out)
    silent = sum(shard.silent_scenes for shard in finished)
    report = make_report(reading, rows, rejects, silent, job.recipe.image_size)
    write_index(out / INDEX_FILE, rows)
    with atomic_write(out / REJECTS_FILE) as file:
        file.writelines(json.dumps(asdict(reject)) + "\n" for reject in rejects)
    with atomic_write(out / REPORT_FILE) as file:
        json.dump(report, file, indent=1)
    from ma2mba.plots import draw_histogram  # the import takes a second, which most calls do not need to spend

    with atomic_path(out / LENGTHS_PICTURE) as temporary:
        draw_histogram("Length of samples", report["tokens_per_sample"], temporary)
    with atomic_path(out / TOKENIZER_FILE) as temporary:
        shutil.copyfile(job.tokenizer, temporary)
    write_manifest(out, _manifest(job, resolved, rows, finished))
    return report, rejects


def _manifest(job: Job, resolved: dict[str, Any], rows: list[IndexRow], finished: list[FinishedShard]) -> Manifest:
    """Return the manifest of a finished build, from the files that it has written."""
    small = [file_entry(job.out, name) for name in (INDEX_FILE, REJECTS_FILE, REPORT_FILE, TOKENIZER_FILE)]
    return Manifest(
        image_size=job.recipe.image_size,
        fps=job.recipe.fps,
        recipe=resolved,
        recipe_hash=job.recipe_hash,
        tokenizer_sha256=resolved["tokenizer_sha256"],
        decoder=job.recipe.decoder,
        decoder_version=resolved["decoder_version"],
        sources=_sources(job.recipe, rows),
        files=small + [shard.payload for shard in finished if shard.payload],
        samples=len(rows),
        frames=sum(row.frames for row in rows),
        tokens=sum(len(row.token_ids) for row in rows),
    )


def _sources(recipe: Recipe, rows: list[IndexRow]) -> list[SourceEntry]:
    """Return one entry per data set, in the order of the recipe."""
    samples = Counter(row.dataset for row in rows)
    named = {source.name: source for source in recipe.sources}
    return [SourceEntry(name=n, format=s.format, weight=s.weight, samples=samples[n]) for n, s in named.items()]


def make_report(
    reading: Reading, rows: list[IndexRow], rejects: list[Reject], silent_scenes: int, image_size: int
) -> dict[str, Any]:
    """Return the counts of a build. Every run of the same build returns the same report."""
    return {
        "records": reading.records,
        "conversations_before_grouping": reading.ungrouped,
        "conversations_after_grouping": len(reading.clips),
        **({"excluded": reading.excluded} if reading.excluded else {}),
        "samples": len(rows),
        "by_dataset": _by_dataset(reading, rows),
        "partial": sum(row.status == "partial" for row in rows),
        "rejected": len(rejects),
        "rejected_by_reason": dict(sorted(Counter(reject.reason for reject in rejects).items())),
        "scenes_without_a_sampled_frame": silent_scenes,
        "frames": sum(row.frames for row in rows),
        "seconds": round(sum(row.duration for row in rows), 3),
        "text_tokens": sum(len(row.token_ids) for row in rows),
        "supervised_tokens": int(sum(row.supervised.sum() for row in rows)),
        **lengths(rows, image_size),
    }


def _by_dataset(reading: Reading, rows: list[IndexRow]) -> dict[str, dict[str, int]]:
    """Return the counts of each data set."""
    samples = Counter(row.dataset for row in rows)
    return {name: counts | {"samples": samples[name]} for name, counts in reading.by_dataset.items()}


def _no_valid_sample(recipe_path: Path, rejects: list[Reject]) -> UserError:
    """Return the error for a build without a sample. It lists the first rejects."""
    shown = [f"  {reject.where} {reject.media}: {reject.reason}" for reject in rejects[:20]]
    more = [f"  and {len(rejects) - 20} more"] if len(rejects) > 20 else []
    return UserError(
        "\n".join([f"{recipe_path}: the annotations contain no valid sample. Fix these records:", *shown, *more])
    )

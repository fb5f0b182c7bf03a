"""Build a shard folder from a recipe: read annotations, build parts in parallel, then name them all in a manifest."""

import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.clips import Clip, Reject
from data_prep.lengths import lengths
from data_prep.parts import WORK_FOLDER, Fragment, Job, load_fragment, load_rows
from data_prep.reading import Reading, read_sources
from data_prep.recipe import Recipe, load_recipe, resolve
from data_prep.running import Share, build_missing
from data_prep.workfolder import Busy, check_folder, claim, remove_leftovers
from ma2mba.errors import UserError
from ma2mba.files import atomic_path, atomic_write
from ma2mba.model.conversation import load_tokenizer
from ma2mba.shards.format import (
    INDEX_FILE,
    ORIGIN_FILE,
    REJECTS_FILE,
    REPORT_FILE,
    TOKENIZER_FILE,
    IndexRow,
)
from ma2mba.shards.manifest import Manifest, SourceEntry, file_entry, hash_json, write_manifest
from ma2mba.shards.writer import write_index
from ma2mba.video.decode import decoder_version
from ma2mba.video.limits import MEMORY
from ma2mba.video.pool import STALL

LENGTHS_PICTURE = "lengths.png"
"""Beside the shards, not of them: a picture of the report."""


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
) -> tuple[dict[str, Any], list[Reject]]:
    """Build, or go on with a build that was stopped; returns the report and what was rejected.

    `executor` is "local" (`workers` processes here) or "ray". With `share` only its parts are built, and with `merge`
    none; either names all parts in a manifest if all are there, else `share` reports `parts_missing`.
    The report's `already_built` tells that there was nothing to do. Raises UserError for a bad recipe, a folder that
    holds something else, or when not one sample can be made; then nothing is left in `out`.
    """
    recipe = load_recipe(recipe_path)
    base = recipe_path.parent
    tokenizer = (base / recipe.tokenizer).resolve()
    load_tokenizer(tokenizer)
    resolved = resolve(recipe, base, decoder_version(recipe.decoder))
    if check_folder(out, resolved):
        return _finished(out)
    if merge and not (out / WORK_FOLDER).is_dir() and not check_folder(out, resolved):
        raise UserError(f"{out}: no part was built here; name the folder that was built with --part")
    reading = read_sources(recipe, base)
    _require_something(reading, recipe_path, reading.rejects)
    job = Job(out, recipe, hash_json(resolved), tokenizer, memory)
    parts = split(reading.clips, recipe.clips_per_part)
    if not merge:
        with claim(out, resolved, shared=share is not None):
            if check_folder(out, resolved):
                return _finished(out)
            mine = (share or Share(0, 1)).of_parts(len(parts))
            build_missing(job, parts, mine, workers, stall, executor)
    done = _finish_if_whole(job, resolved, reading, len(parts), recipe_path, alone=share is None)
    return done or _unfinished(out, resolved, len(parts), merge)


def _unfinished(out: Path, resolved: dict[str, Any], parts: int, merge: bool) -> tuple[dict[str, Any], list[Reject]]:
    """What is missing, unless another process has finished it meanwhile. Raises UserError when all was to be there."""
    missing = sum(load_fragment(out, part) is None for part in range(parts))
    if check_folder(out, resolved):
        return _finished(out)
    if merge:
        raise UserError(f"{out}: {missing} of {parts} parts are not built yet; build them with --part, then merge")
    return {"already_built": False, "parts": parts, "parts_missing": missing}, []


def _finish_if_whole(
    job: Job, resolved: dict[str, Any], reading: Reading, parts: int, recipe_path: Path, *, alone: bool
) -> tuple[dict[str, Any], list[Reject]] | None:
    """Name all parts in a manifest; None when some are missing, or (unless `alone`) others are still at work."""
    try:
        with claim(job.out, resolved):
            if check_folder(job.out, resolved):
                return _finished(job.out)
            fragments = [fragment for part in range(parts) if (fragment := load_fragment(job.out, part))]
            if len(fragments) < parts:
                return None
            report, rejects = finish(job, resolved, reading, fragments, recipe_path)
            shutil.rmtree(job.out / WORK_FOLDER, ignore_errors=True)
            return report | {"already_built": False}, rejects
    except Busy:
        if alone:
            raise
        return None


def _finished(out: Path) -> tuple[dict[str, Any], list[Reject]]:
    report = json.loads((out / REPORT_FILE).read_bytes())
    lines = (out / REJECTS_FILE).read_text(encoding="utf-8").splitlines()
    return report | {"already_built": True}, [Reject(**json.loads(line)) for line in lines]


def split(clips: list[Clip], size: int) -> list[list[Clip]]:
    """Consecutive clips, `size` a part: independent of the number of workers."""
    return [clips[i : i + size] for i in range(0, len(clips), size)]


def finish(
    job: Job, resolved: dict[str, Any], reading: Reading, fragments: list[Fragment], recipe_path: Path
) -> tuple[dict[str, Any], list[Reject]]:
    """Write index, rejects, report, tokenizer and, last, the manifest."""
    out = job.out
    rows = [row for part in range(len(fragments)) for row in load_rows(out, part)]
    rejects = reading.rejects + [reject for fragment in fragments for reject in fragment.rejects]
    if not rows:
        shutil.rmtree(out)
        _require_something(Reading(), recipe_path, rejects)
    remove_leftovers(out)
    silent = sum(fragment.silent_scenes for fragment in fragments)
    report = make_report(reading, rows, rejects, silent, job.recipe.image_size)
    write_index(out / INDEX_FILE, rows)
    with atomic_write(out / REJECTS_FILE) as file:
        file.writelines(json.dumps(asdict(reject)) + "\n" for reject in rejects)
    with atomic_write(out / REPORT_FILE) as file:
        json.dump(report, file, indent=1)
    from ma2mba.plots import draw_histogram  # takes a second to import, which most calls need not spend

    with atomic_path(out / LENGTHS_PICTURE) as temporary:
        draw_histogram("Length of samples", report["tokens_per_sample"], temporary)
    with atomic_write(out / ORIGIN_FILE) as file:
        json.dump({"recipe": str(recipe_path.resolve()), "memory": job.memory}, file)
    with atomic_path(out / TOKENIZER_FILE) as temporary:
        shutil.copyfile(job.tokenizer, temporary)
    write_manifest(out, _manifest(job, resolved, rows, fragments))
    return report, rejects


def _manifest(job: Job, resolved: dict[str, Any], rows: list[IndexRow], fragments: list[Fragment]) -> Manifest:
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
        files=small + [fragment.payload for fragment in fragments if fragment.payload],
        samples=len(rows),
        frames=sum(row.frames for row in rows),
        tokens=sum(len(row.token_ids) for row in rows),
    )


def _sources(recipe: Recipe, rows: list[IndexRow]) -> list[SourceEntry]:
    """One entry a data set, in the recipe's order."""
    samples = Counter(row.dataset for row in rows)
    named = {source.name: source for source in recipe.sources}
    return [SourceEntry(name=n, format=s.format, weight=s.weight, samples=samples[n]) for n, s in named.items()]


def make_report(
    reading: Reading, rows: list[IndexRow], rejects: list[Reject], silent_scenes: int, image_size: int
) -> dict[str, Any]:
    """Counts of a build; the same for every run of it."""
    return {
        "records": reading.records,
        "conversations_before_grouping": reading.ungrouped,
        "conversations_after_grouping": len(reading.clips),
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
    samples = Counter(row.dataset for row in rows)
    return {name: counts | {"samples": samples[name]} for name, counts in reading.by_dataset.items()}


def _require_something(reading: Reading, recipe_path: Path, rejects: list[Reject]) -> None:
    if reading.clips:
        return
    shown = [f"  {reject.where} {reject.media}: {reject.reason}" for reject in rejects[:20]]
    more = [f"  and {len(rejects) - 20} more"] if len(rejects) > 20 else []
    raise UserError(
        "\n".join([f"{recipe_path}: not one sample can be made of its records; repair them:", *shown, *more])
    )
